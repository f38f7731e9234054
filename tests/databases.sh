#!/bin/sh
# Runs a command, pytest with arguments, once for each kind of database. Fails when one run does, or none found a test:
# arguments may name tests to which a database makes no difference.
found=0
for kind in ${DATABASES:-sqlite mariadb postgresql}; do
    echo "== $kind"
    "$@" "--database=$kind"
    case $? in
        0) found=1 ;;
        5) ;; # no test
        *) exit 1 ;;
    esac
done
[ $found = 1 ] || { echo "No test was found." >&2; exit 5; }
