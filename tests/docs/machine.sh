# A machine of its own for the commands of a guide: bash machine.sh SETUP COMMANDS, as root and below
# `unshare --mount --net --pid --fork --kill-child --mount-proc`.
#
# /etc, /opt, /srv and /var can be written to and are left as they were, nobody else listens on its loopback, and what
# is started ends with it. There is no systemd: `systemctl` is a stand-in that reads the same unit (`systemctl.py`).
set -eu
setup=$1 commands=$2

scratch=$(mktemp --directory "$PWD/machine.XXXX")
mount -t tmpfs -o mode=755 tmpfs "$scratch"
chmod 711 "$PWD"

writable() {
    local changes
    changes=$(mktemp --directory "$scratch/XXXX")
    mkdir "$changes/upper" "$changes/work"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$changes/upper,workdir=$changes/work" "$1"
}

for place in /etc /opt /srv /var; do
    writable $place
done
# Whatever of this the host has is hidden: what is removed here stays where it is below.
rm -rf /etc/calotype /etc/glance /opt/calotype /srv/cheap /var/lib/calotype /var/lib/glance /var/log/calotype
# The service's user has to reach Python and the program, wherever whoever runs the tests has them.
for path in $READABLE; do
    while [ "$path" != / ]; do
        path=$(dirname "$path")
        case $(stat --format %A "$path") in
        *x | *t) ;;
        *)
            writable "$path"
            chmod o+x "$path"
            ;;
        esac
    done
done
ip link set lo up

mkdir -p /opt/calotype/bin "$scratch/bin"
ln -s "$PROGRAMS/calotype" /opt/calotype/bin/calotype
printf '#!/bin/sh\nexec "%s/python" "%s/systemctl.py" "$@"\n' "$PROGRAMS" "$(dirname "$0")" >"$scratch/bin/systemctl"
chmod 755 "$scratch/bin/systemctl"
export PATH="$scratch/bin:$PROGRAMS:$PATH"

set +eu
. "$setup" >"$scratch/setup.log" 2>&1 || { cat "$scratch/setup.log" >&2; exit 1; }
eval "$commands"
