# Each verb is a script of the same name in scripts/. What changes the machine as root is in scripts/machine/.

.DEFAULT_GOAL := help
.PHONY: help run test test-stack check bench-identity load load-saturate bench-replicas bench-memory env logs stop clean up down

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

run: ## install, build, start, and run a demo container; then return
	@scripts/run

test: ## run all tests on real Postgres, Redis and Docker (ARGS="…" is passed to cargo test)
	@scripts/test $(ARGS)

test-stack: ## test the scaled-out system in containers, including faults
	@scripts/test-stack $(ARGS)

check: ## check formatting, lints and documentation, as strictly as CI
	@scripts/check

bench-identity: ## measure the cost of verifying and revoking an API key
	@scripts/bench-identity

load: ## load test: USERS=1000 users with think time, nginx, three replicas
	@scripts/load

load-saturate: ## load test without think time: the maximum of this machine
	@scripts/load-saturate

bench-replicas: ## measure throughput and processor time with one, two and three replicas
	@scripts/bench-replicas

bench-memory: ## measure the memory of a replica at 1000 and 5000 connections
	@scripts/bench-memory

env: ## start the private services and write .app/dev.env, without the app
	@scripts/env

logs: ## follow the app's log
	@scripts/logs

stop: ## stop the app and the private services; data stays
	@scripts/stop

clean: ## remove all that make run made, and a private Docker engine (with what make up made there)
	@scripts/clean

up: ## start the scaled-out system in containers (API=3 replicas)
	@scripts/up

down: ## stop it and remove the tenants' containers (ARGS=-v: its data too)
	@scripts/down $(ARGS)
