# The verbs of this project. Each is a script of that name in scripts/.

.DEFAULT_GOAL := help
.PHONY: help run test test-stack check bench-identity load load-saturate bench-replicas bench-memory env logs stop clean up down

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

run: ## install, build, start, and take a request to a running container; then return
	@scripts/run

test: ## all tests on real Postgres, Redis and Docker (ARGS="…" goes to cargo test)
	@scripts/test $(ARGS)

test-stack: ## the scaled-out system in containers, and what it survives
	@scripts/test-stack $(ARGS)

check: ## formatting, lints, documentation: as strict as CI
	@scripts/check

bench-identity: ## what checking and revoking a key costs, as a table
	@scripts/bench-identity

load: ## USERS=1000 users with think time through nginx to three replicas, and what they got
	@scripts/load

load-saturate: ## as much as this machine can do
	@scripts/load-saturate

bench-replicas: ## one, two and three replicas: throughput, and processor time per request
	@scripts/bench-replicas

bench-memory: ## memory of a replica at 1000 and 5000 connections
	@scripts/bench-memory

env: ## the private services and .app/dev.env, without the app
	@scripts/env

logs: ## follow the app's log
	@scripts/logs

stop: ## stop the app and the private services; data stays
	@scripts/stop

clean: ## remove everything that make run made, and a Docker of our own with all in it, make up too
	@scripts/clean

up: ## the scaled-out system in containers (API=3 replicas)
	@scripts/up

down: ## take it down, and the tenants' containers with it (ARGS=-v: its data too)
	@scripts/down $(ARGS)
