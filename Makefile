# The doors of this project. Each target does all of its own set-up.
#   make run        what osmosis is for: this host's processes, their TCB and impact boundary
#   make test       all tests; as root the live ones too
#   make bench      benchmarks with fair peers, one table of ratios at the end
#   make evaluation                 as root: the paper's comparison, with every runtime that starts here
#   make evaluation-from-snapshots  the same from the snapshots in tests/data, on any machine
#   make lint       ruff, mypy --strict, cython-lint; stubs against the extensions
#   make sanitize   native tests with bounds checks, AddressSanitizer, UBSan; as root, real captures
#                   under ThreadSanitizer
# PYTHON=... chooses an interpreter (>= 3.11), VENV=... where the environment goes.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do \
    "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV ?= .venv
ARGS ?=
NATIVE := $(wildcard src/_fastproc/*.pyx src/_fastproc/*.pxd) setup.py pyproject.toml
BUILT := $(VENV)/.built

.PHONY: run test bench evaluation evaluation-from-snapshots lint sanitize wheel clean system

run: $(BUILT)
	@# 3: answered, and something of this host could not be read; the output says what.
	$(VENV)/bin/osmosis $(ARGS) || [ $$? = 3 ]

test: $(BUILT) $(VENV)/.test
	$(VENV)/bin/python -m pytest $(ARGS)

bench: $(BUILT) $(VENV)/.bench
	$(VENV)/bin/python -m pytest benchmarks -p no:cacheprovider $(ARGS)

evaluation: $(BUILT)
	$(VENV)/bin/python -m benchmarks.evaluation.run --install --report $(ARGS)

evaluation-from-snapshots: $(BUILT)
	$(VENV)/bin/python -m benchmarks.evaluation.report $(ARGS)

lint: $(BUILT) $(VENV)/.test $(VENV)/.lint
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	PATH="$$(cd $(VENV)/bin && pwd):$$PATH" cython-lint src/_fastproc
	$(VENV)/bin/python tools/check_stubs.py

sanitize: $(BUILT) $(VENV)/.test
	sh tools/sanitize.sh $(VENV)

wheel: $(BUILT)
	$(VENV)/bin/python -m pip wheel -q --no-deps --no-build-isolation -w dist .

system:
	sh tools/system.sh "$(PYTHON)"

$(VENV)/bin/python: | system
	$(or $(PYTHON),$(error osmosis needs Python 3.11 or newer: install python3)) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --upgrade pip "setuptools>=77" wheel "cython>=3.1"

$(BUILT): $(VENV)/bin/python $(NATIVE)
	$(VENV)/bin/python -m pip install -q --no-build-isolation -e '.[cli]'
	@touch $@

$(VENV)/.%: $(VENV)/bin/python pyproject.toml
	$(VENV)/bin/python tools/extra.py $* > $@.txt
	$(VENV)/bin/python -m pip install -q -r $@.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info src/_fastproc/*.so src/_fastproc/*.c src/_fastproc/*.html
