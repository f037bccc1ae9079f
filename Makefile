# Two commands do everything: `make run` and `make test`. Both make the virtual environment they need.
#
#   TRITON=triton==3.9.0  another Triton, for `make gpu-check`
#   TORCH=torch==2.15.0   another torch, as pip names it       PYTHON=python3.12   another interpreter
#   VENV=.venv-next       another virtual environment          OUT=runs/digits     where the sweep goes
#   BENCH="--rounds 60"   options of the benchmark (bench/README.md)
#   JOBS=1                how many processes run the tests; one per core is the default

PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON ?= triton==3.6.0
VENV ?= .venv
OUT ?= runs/digits
JOBS ?= auto
BENCH ?=
BIN := $(VENV)/bin
PRINT_PACKAGES := import sysconfig; print(sysconfig.get_path("purelib"))
TORCHS_OWN := torch torch-* torchgen functorch nvidia* cuda* triton* pytorch_triton*
# One stamp per torch: asking for another one installs it.
INSTALLED := $(VENV)/.installed-$(subst /,_,$(TORCH))

.PHONY: help run test slow processors gpu-check check package report bench integrations docs architectures clean
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 16

run: $(INSTALLED)  ## train 768 small networks on handwritten digits and write a report on weight decay
	$(BIN)/weightdecay sweep digits --out $(OUT)

test: $(INSTALLED)  ## run every test but the slow ones
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

slow: $(INSTALLED)  ## run the tests that need gigabytes or start processes over and over
	$(BIN)/python -m pytest -m slow tests

processors: $(INSTALLED)  ## run the tests of the backends as older processors would
	$(BIN)/python .ci/processors.py -n $(JOBS) --dist worksteal

# Its own environment, since Triton belongs to no CPU build of torch, and NumPy before 2.4, since Triton 3.6's interpreter
# cannot use a newer one. The .pth file lends it torch and all else from the first: a second copy is a gigabyte.
GPU_INSTALLED := $(VENV)-gpu/.installed-$(TRITON)-$(subst /,_,$(TORCH))

gpu-check: $(GPU_INSTALLED)  ## run the GPU kernels in Triton's interpreter and compile all of them, without a GPU
	TRITON_INTERPRET=1 $(VENV)-gpu/bin/python -m pytest -q -n $(JOBS) --dist worksteal tests/test_gpu_backend.py
	rm -rf build/triton-cache
	TRITON_CACHE_DIR=build/triton-cache $(VENV)-gpu/bin/python -m pytest -q -n $(JOBS) --dist worksteal \
		tests/test_gpu_compiled.py tests/test_gpu_source.py tests/test_gpu_device.py

$(GPU_INSTALLED): $(INSTALLED) pyproject.toml
	rm -rf $(VENV)-gpu
	$(BIN)/python -m venv $(VENV)-gpu
	$(BIN)/python -c '$(PRINT_PACKAGES); print("$(CURDIR)/src")' \
		> "$$($(VENV)-gpu/bin/python -c '$(PRINT_PACKAGES)')/weightdecay-first.pth"
	$(VENV)-gpu/bin/python -m pip install --quiet "$(TRITON)"
	$(VENV)-gpu/bin/python -m pip install --quiet --no-deps --ignore-installed "numpy<2.4"
	touch $@

check: $(INSTALLED)  ## lint, format and type-check
	$(BIN)/ruff check
	$(BIN)/ruff check --preview --select PLW1514  # a text file is in UTF-8 whatever the locale
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

report: $(INSTALLED)  ## open the report of `make run` in headless Chromium and check it
	$(BIN)/python .ci/check_report.py $(OUT)

# torch is named again so that no package that is compared may bring another one; without them the rest is measured.
bench: $(INSTALLED)  ## measure the CPU steps against torch's, in minutes on an idle machine
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[bench]" || echo "some packages to compare with do not install"
	$(BIN)/python -m bench.cpu --out runs/bench/cpu.json $(BENCH)

integrations: $(INSTALLED)  ## train in Hugging Face's Trainer, in accelerate and in Lightning
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[integrations]"
	$(BIN)/python -m pytest -q tests/test_integrations.py src/weightdecay/integrations
	$(BIN)/python -m pytest -q tests/test_schedules.py -k "accelerate or lightning"

docs: $(INSTALLED)  ## build the documentation into build/docs; a warning is an error
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[docs]"
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/generate.py --pictures
	$(BIN)/python -m sphinx -W --keep-going -n -q -d build/doctrees docs build/docs
	$(BIN)/python -m pytest -q tests/test_derivation.py tests/test_documents.py -k katex

architectures: $(INSTALLED)  ## check the groups of every model family of transformers
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[architectures]"
	$(BIN)/python -m pytest -m architectures tests/test_architectures.py

# All that it needs is installed but torch, a gigabyte, which is linked from the first environment.
package: $(INSTALLED)  ## build the wheel and use it from a virtual environment without this tree
	rm -rf build/wheel build/venv && mkdir -p build
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m venv build/venv
	cd "$$($(BIN)/python -c '$(PRINT_PACKAGES)')" && for found in $(TORCHS_OWN); do \
		test ! -e "$$found" || ln -s "$$PWD/$$found" "$$("$(CURDIR)/build/venv/bin/python" -c '$(PRINT_PACKAGES)')" || exit 1; done
	build/venv/bin/python -c "import importlib.metadata as packages; packages.version('torch')"
	build/venv/bin/pip install --quiet build/wheel/*.whl
	cd build && venv/bin/python -W error::UserWarning:weightdecay -c "import weightdecay as wd; print(wd.__version__, wd.rules())"
	build/venv/bin/pip install --quiet "$$(ls build/wheel/*.whl)[sweep]"
	cd build && venv/bin/weightdecay sweep diabetes --out sweep --seeds 1 --lr 1e-3:1e-1:3 --weight-decay 0,1 --fresh

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("weightdecay needs Python 3.11 or newer: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[sweep,dev]"
	rm -f $(VENV)/.installed-*
	touch $@

clean:  ## remove what the commands above made
	rm -rf $(VENV) $(VENV)-gpu build runs
