# The routines a person types. `make help` lists them.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STATE  ?= .state
ARGS   ?=
DATABASES ?= mariadb postgresql sqlite1 sqlite2 sqlite3 alone
# Programs that tests start, such as mariadbd, are here on Debian, where the PATH of users does not lead.
export PATH := $(PATH):/usr/sbin:/sbin
# Tests start Python thousands of times; it must not compile everything each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help serve client test check lint crash clocks model schema fuzz formats bench peer differential beside tempest samples plans clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# Each stamp is a full installation of one set of requirements; pip runs again when pyproject.toml changes.
$(VENV)/.serve: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Calotype needs Python 3.11 or newer; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV) || { echo "The venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

$(VENV)/.fuzz: $(VENV)/.test
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@

# A real Keystone, for the tests that want one; in an environment of its own, because it pins what it needs.
.keystone/ready:
	@$(PYTHON) -m venv .keystone/venv
	.keystone/venv/bin/pip install --quiet --disable-pip-version-check 'keystone>=30,<31' 'gunicorn>=27,<28' setuptools
	@touch $@

# A tool that imports images, for the test that wants it; in an environment of its own as well.
.image-manager/ready:
	@$(PYTHON) -m venv .image-manager/venv
	.image-manager/venv/bin/pip install --quiet --disable-pip-version-check --no-compile openstack-image-manager==0.20261006.0
	@touch $@

# Swift, for its driver, likewise. It needs pkg_resources.
.swift/ready:
	@$(PYTHON) -m venv .swift/venv
	.swift/venv/bin/pip install --quiet --disable-pip-version-check 'swift>=2.38,<2.39' 'keystonemiddleware>=12,<14' 'setuptools<81'
	@touch $@

# tempest, likewise.
.tempest/ready:
	@$(PYTHON) -m venv .tempest/venv
	.tempest/venv/bin/pip install --quiet --disable-pip-version-check 'tempest==47.0.0' setuptools
	@touch $@

$(VENV)/.client: $(VENV)/.serve
	$(BIN)/pip install --quiet --disable-pip-version-check python-openstackclient
	@touch $@

serve: $(VENV)/.serve ## start the service on 127.0.0.1:9292; ARGS="--bind … --workers …" is passed on
	@exec $(BIN)/calotype serve --state-dir $(STATE) $(ARGS)

client: $(VENV)/.client ## install the openstack client beside the service, as .venv/bin/openstack

check: lint ## after each save: lint, and the tests that are quick and need nothing but Python; ARGS="tests/api" chooses
	@DATABASES="check1 check2" tests/each-database $(BIN)/pytest -q $(ARGS)

test: $(VENV)/.test ## run all tests on each database; sets up what they need; ARGS="tests/api", DATABASES="mariadb sqlite" choose
	@needed="$$($(BIN)/python -m tests.needed "$(DATABASES)" $(ARGS))" || exit; \
	for tool in keystone image-manager swift; do \
		case " $$needed " in *[[:space:]]$$tool[[:space:]]*) $(MAKE) --no-print-directory .$$tool/ready || exit ;; esac; \
	done; \
	[ -z "$$needed" ] || tests/needs $$needed
	@DATABASES="$(DATABASES)" tests/each-database $(BIN)/pytest $(ARGS)

lint: $(VENV)/.test ## ruff, mypy (strict on src), the import rules, and links that leave the tree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.tree

crash: $(VENV)/.test ## the long form of the kill -9 test; ARGS="--kills N --database mariadb --store toy", or "--power N" to lose power
	@tests/needs
	@case "$(ARGS)" in *swift*) $(MAKE) --no-print-directory .swift/ready ;; esac
	$(BIN)/python -m tests.crash $(ARGS)

clocks: $(VENV)/.test ## two hosts whose clocks lie, whose database hangs and of which one is stopped; ARGS="--database postgresql --seconds 120"
	@tests/needs
	$(BIN)/python -m tests.clocks $(ARGS)

model: $(VENV)/.test ## 200,000 random calls beside a reference model; ARGS="--steps N --seed N --database mariadb"
	@tests/needs
	$(BIN)/python -m tests.model $(ARGS)

schema: $(VENV)/.test ## send what the description of the API allows, and what it does not; ARGS="--examples N --seed N --personas admin"
	$(BIN)/python -m tests.schema $(ARGS)

fuzz: $(VENV)/.fuzz ## feed the parsers what finds new ways through them; ARGS="--seconds N target" chooses
	$(BIN)/python -m tests.fuzz $(ARGS)

formats: $(VENV)/.test ## ask qemu-img about 6,500 changed headers, write its verdicts anew and count where Calotype differs; ARGS=list names them
	@tests/needs
	$(BIN)/python -m tests.formats $(ARGS)

bench: $(VENV)/.test ## measure the data path against its hardware floors
	$(BIN)/python -m bench $(ARGS)

peer: $(VENV)/.test .keystone/ready ## measure beside a real Glance 33, which it installs into .peer; on MariaDB; takes an hour
	@tests/needs
	$(BIN)/python -m bench.peer $(ARGS)

differential: $(VENV)/.test .keystone/ready ## compare the answers to 5,000 requests with those of a real Glance 33; ARGS="--sections lists"
	@tests/needs
	$(BIN)/python -m tests.differential $(ARGS)

beside: $(VENV)/.test .keystone/ready ## imports by Calotype and by a real Glance 33 that share a database and stores; ARGS="-k lock"
	@tests/needs
	$(BIN)/pytest -q tests/beside/imports.py $(ARGS)

tempest: $(VENV)/.test .keystone/ready .tempest/ready ## run tempest's tests of images with a real Keystone; ARGS="pattern" chooses
	@tests/needs
	$(BIN)/python -m tests.tempest $(ARGS)

samples: $(VENV)/.test ## regenerate the samples in etc/, openapi.json and the reference in docs/api/
	$(BIN)/python -m tests.docs.samples

plans: $(VENV)/.test ## write docs/contribute/queries.md anew: how each database answers lists
	@tests/needs
	$(BIN)/python -m tests.db.plans

clean: ## remove the virtual environment; leaves the state directory alone
	rm -rf $(VENV) .keystone .image-manager .swift .tempest
