# What the project can be told to do. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
SCALE ?= default
SEQUENCES ?= 6000
# the release of Debian that hosts and guests run: bookworm or trixie
SUITE ?= bookworm
export FAILAVOID_SUITE := $(SUITE)
# what ansible-test looks at: what says something about modules and a collection, beside what `make lint` does
SANITY ?= ansible-doc compile ignores import line-endings runtime-metadata shebang validate-modules
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

PACKAGES := binutils gcc gnutls-bin libvirt-dev make pkg-config python3-dev python3-venv \
  fuse3 iproute2 lxcfs mmdebstrap openmpi-bin openssh-client procps python3-mpi4py python3-numpy systemd-container
# for tests alone: the compilers of both MPIs, containers for ranks, one of the two module systems, a browser for the display,
# Prometheus for what it scrapes, SQLite's program for the site guide's backup
TEST_PACKAGES := bubblewrap chromium dnsmasq-base gfortran libmpich-dev libopenmpi-dev lmod mpich prometheus sqlite3
# machines that boot over the network, one of them with UEFI
NETBOOT_PACKAGES := ovmf qemu-system-x86
define install_packages
	@missing=$$(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(1) 2>&1 | awk '!/^installed /'); \
	if [ -n "$$missing" ]; then echo "== installing Debian packages"; apt-get -q update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qy install --no-install-recommends $(1); fi
endef

# what is known before anything is installed; what a testbed needs of memory, disk and network is looked at by playbooks/testbed.yml
define look_at_machine
	@test "$$(id -u)" = 0 || { echo "The testbed makes network bridges and containers: run this as root." >&2; exit 1; }
	@. /etc/os-release && case "$$ID $$VERSION_ID" in "debian 12"|"debian 13") ;; *) \
	  echo "This system is $$ID $$VERSION_ID; the testbed runs on Debian 12 and 13: use such a machine, or a virtual one." >&2; exit 1;; \
	esac
endef

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 20

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	$(call look_at_machine)
	$(call install_packages,$(PACKAGES))
	@echo "== making $(VENV) from requirements/dev.txt (a minute or two)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@

.venv-mpich/.installed: requirements/mpich.txt
	$(call install_packages,$(TEST_PACKAGES))
	@echo "== making .venv-mpich from requirements/mpich.txt, since two MPIs in one would overwrite each other"
	$(PYTHON) -m venv .venv-mpich
	.venv-mpich/bin/pip install --quiet --requirement requirements/mpich.txt
	@touch $@

# Debian's packages of the two module systems can't be installed together; this one runs from any folder.
build/environment-modules/.installed:
	$(call install_packages,$(TEST_PACKAGES))
	mkdir -p $(@D)
	cd $(@D) && apt-get -q download environment-modules && dpkg-deb -x environment-modules_*.deb . && rm environment-modules_*.deb
	@touch $@

.PHONY: test-tools
test-tools: venv .venv-mpich/.installed build/environment-modules/.installed ## make .venv-mpich too, and install what tests alone need
	$(call install_packages,$(TEST_PACKAGES))

.PHONY: venv
venv: $(VENV)/.installed ## make .venv with pinned versions

.PHONY: wheel
wheel: venv ## build a wheel with the MPI wrapper's library for this architecture, into dist/
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=true $(BIN)/python -m build --wheel --no-isolation

.PHONY: lock
lock: ## choose versions anew within the ranges of pyproject.toml
	$(BIN)/uv pip compile -q --upgrade --no-annotate --no-header --python-version 3.11 --extra dev pyproject.toml -o requirements/dev.txt
	$(BIN)/uv pip compile -q --no-annotate --no-header --python-version 3.11 --extra head -c requirements/dev.txt pyproject.toml -o requirements/head.txt
	$(BIN)/uv pip compile -q --no-annotate --no-header --python-version 3.11 --extra mpich -c requirements/dev.txt pyproject.toml -o requirements/mpich.txt

.PHONY: lint
lint: venv ## ruff, mypy strict, yamllint, ansible-lint production
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	ansible-lint --profile production --offline

.PHONY: collection
collection: venv ## build the Ansible collection, in build/collection
	python collection/build.py

.PHONY: sanity
sanity: venv ## ansible-test sanity on the collection
	python collection/sanity.py $(SANITY)

.PHONY: demo
demo: venv ## make the testbed and run the demonstration (SCALE=default|rack|paper)
	@python -m failavoid.demo --scale $(SCALE)

.PHONY: testbed
testbed: venv ## make the testbed's hosts and deploy everything on them (SUITE=bookworm|trixie)
	@python -m failavoid.demo --scale $(SCALE) --testbed-only

.PHONY: test
test: test-tools ## unit tests, MPI tests, then all tests on one real testbed
	@python -m failavoid.demo --scale default --testbed-only
	@# one after the other even where the first fails: each says what it found
	status=0; \
	python -m pytest --numprocesses 2 --dist loadfile tests/unit || status=1; \
	python -m pytest tests/mpi tests/testbed || status=1; \
	exit $$status

.PHONY: search
search: venv ## try SEQUENCES new sequences of events on evacuations (6000), a twentieth as many on the resource manager
	status=0; \
	FAILAVOID_MODEL_EXAMPLES=$(SEQUENCES) python -m pytest --timeout 0 tests/unit/test_evacuation_model.py || status=1; \
	FAILAVOID_MODEL_EXAMPLES=$$(($(SEQUENCES) / 20)) python -m pytest --timeout 0 tests/unit/test_resource_manager_sequences.py || status=1; \
	exit $$status

.PHONY: molecule
molecule: venv ## each part's scenario on the testbed's hosts: checked, applied twice, looked at from the outside
	@python -m failavoid.demo --scale default --testbed-only
	molecule test --all

.PHONY: netboot
netboot: venv ## boot machines from the system image over the network; guests on the right and the wrong NUMA node
	$(call install_packages,$(NETBOOT_PACKAGES))
	python -m pytest tests/netboot

.PHONY: faults
faults: test-tools ## kill services, cut networks, stop the NFS server during evacuations; interrupt deployments
	@python -m failavoid.demo --scale default --testbed-only
	python -m pytest tests/faults

.PHONY: bench
bench: test-tools ## measure; writes build/bench/*.json
	@python -m failavoid.demo --scale default --testbed-only
	python -m tests.bench.evacuation
	python -m tests.bench.ansible
	python -m tests.bench.barrier
	python -m tests.bench.monitor
	python -m tests.bench.agent
	python -m tests.bench.display

.PHONY: soak
soak: venv ## fifty evacuations in a row under one job; writes build/soak/soak.json
	@python -m failavoid.demo --scale default --testbed-only
	python -m tests.soak

.PHONY: clean-testbed
clean-testbed: venv ## end the testbed: no process, mount, bridge, cgroup or file stays (the image does)
	ansible-playbook -i inventories/testbed playbooks/testbed-clean.yml

.PHONY: clean-image
clean-image: venv ## the same, and remove the system image with the packages kept for it
	ansible-playbook -i inventories/testbed playbooks/testbed-clean.yml -e sysimage_remove_state=true
