# Everything a developer types. `make` alone explains itself.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2

.PHONY: help setup test check format demo bench rivals proto clients clean

help: ## show this
	@echo "make TARGET"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/installed ## environment in .venv with everything that development needs (Python 3.11 or newer)

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "headrace needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1 || echo 'not there')." >&2; \
	  echo "Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
	  echo "python3 cannot make environments (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "installing into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

test: setup ## all tests, on WORKERS processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

check: setup ## everything that must hold: format, lint, types, import contracts, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory test

format: setup ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: setup ## a platform with real models, shown step by step; ONCE=1 ends by itself
	ONCE=$(ONCE) $(BIN)/python -m examples.demo

bench: setup ## every bench, quickly, in a table
	$(BIN)/python -m bench

rivals: ## the servers that bench.dataplane compares with, each in an environment below .rivals/
	@PYTHON=$(PYTHON) bash bench/rivals/install.sh

proto: ## the gRPC code from its .proto files
	@# An environment of its own, and no newer: the code runs with the generator's protobuf and later ones, not earlier.
	@# A pool of their own: the names are the protocol's, and other clients in the process bring the same ones.
	$(PYTHON) -m venv .proto
	.proto/bin/python -m pip install --quiet --disable-pip-version-check 'grpcio-tools==1.73.1' 'setuptools<81'
	cd src && ../.proto/bin/python -W ignore -m grpc_tools.protoc -I. --python_out=. --pyi_out=. headrace/router/grpc_api/*.proto
	sed -i 's/_descriptor_pool.Default()/_descriptor_pool.DescriptorPool()/' src/headrace/router/grpc_api/*_pb2.py
	rm -rf .proto

clients: ## other people's clients and documents that tests want, each apart below .clients/
	@PYTHON=$(PYTHON) bash tests/conformance/clients/install.sh

clean: ## what setup, rivals and the tools made
	rm -rf .venv .rivals .clients .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
