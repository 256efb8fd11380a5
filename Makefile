# `make book` and `make test` work on a fresh checkout: they set up what they need.
SHELL := /bin/bash
PYTHON ?= python3
PIP_ARGS ?=
PORT ?= 8000
PY := .venv/bin/python
STAMP := .venv/.installed
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: help env browser book pages serve lab smoke publish sync runs clean
.PHONY: test test-package test-chapters test-book

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

env: $(STAMP)  ## create .venv and install everything into it
$(STAMP): requirements.txt pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet $(PIP_ARGS) -r requirements.txt -e .
	touch $@

browser:  ## install Chromium where it is missing (Debian, Ubuntu)
	@if command -v chromium chromium-browser google-chrome >/dev/null || [ -n "$$CHROMIUM" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	else \
		echo "The page tests need Chromium: \`sudo apt-get install chromium\`, or set CHROMIUM to its path."; \
		exit 1; \
	fi

book: env  ## execute every chapter and render the pages into _build/html
	$(PY) book/build.py html

pages: env  ## render the pages with the committed outputs, executing nothing
	$(PY) book/build.py html --stored

serve:  ## show the rendered book at http://127.0.0.1:8000 (PORT=... for another)
	@test -f _build/html/index.html || $(MAKE) book
	@echo "The book is at http://127.0.0.1:$(PORT); Ctrl-C stops it."
	@$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

lab: env  ## open the chapters in JupyterLab
	$(PY) -m jupyter lab --notebook-dir book

smoke: env  ## train every chapter from scratch in its smallest form
	$(PY) book/build.py smoke

publish: env  ## execute the chapters in place: the .ipynb files to commit
	$(PY) book/build.py publish

sync: env  ## carry the text of every .md into its .ipynb, executing nothing
	$(PY) book/build.py sync

runs: env  ## train every published run again (hours; may be interrupted and resumed)
	$(PY) book/build.py runs

test: env browser  ## everything: package, chapters, rendered book
	@start=$$(date +%s); \
	$(MAKE) --no-print-directory test-package && \
	$(MAKE) --no-print-directory test-chapters && \
	$(MAKE) --no-print-directory test-book && \
	echo "All tests passed in $$(( $$(date +%s) - start )) s."

test-package: env  ## the laws and oracles of the package
	$(PY) -m pytest tests --ignore tests/book -q -n 2 --maxfail 5 --durations 5

CHAPTER_TESTS := test_pairs.py test_published.py test_parameters.py test_papermill.py test_nbval.py
test-chapters: env  ## the chapters: in step, checked parameters, trained from scratch, executed with outputs as published
	@rm -rf _build/probes
	$(PY) -m pytest $(addprefix tests/book/,$(CHAPTER_TESTS)) -q -n 2 --maxfail 3 --durations 10

PAGE_TESTS := test_build.py test_browser.py test_live.py test_lab.py
# Rendered with the outputs that test-chapters has compared with an execution; what torch gave there is kept for the live figures.
test-book: pages browser  ## the rendered pages: links, a browser without a network, live figures, JupyterLab
	$(PY) -m pytest $(addprefix tests/book/,$(PAGE_TESTS)) -q --durations 5

clean:  ## remove what was built (not the environment)
	rm -rf _build
