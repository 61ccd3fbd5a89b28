"""The background optimiser: fewer and cheaper devices for the replicas that run, by few moves.

A large neighbourhood search over CP-SAT (OR-tools, the extra ``optimizer``). Each step takes a few devices, one of them
little used (the victim), and solves them exactly, with the placement as it is for a hint: price first, then as little
as possible on the victim, so that step after step it empties, then few moves. Steps stay small, so the time of one does
not grow with the fleet. In the end moves that turned out to be for nothing are taken back, and a plan that does not
save what its moves cost is no plan.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import msgspec
import numpy as np
from ortools.linear_solver import pywraplp
from ortools.sat.python import cp_model

from headrace.deploy.rebalance import MOVE_PRICE_PER_H, Move, Problem, Solution, packing_of

NEIGHBOURS = 6
"""Devices in use that a step takes."""
ITEMS_MAX = 220
"""Replicas that a step takes."""
STEP_S = 1.0
PRICE_UNIT = 1e-4
COMPUTE_UNIT = 1e-3
VICTIM_SHARE = 0.1
"""Part of its price that a full victim costs more: what is taken off it is worth something before it is empty."""
STEP_GAP = 0.002
"""Above a step's own bound, where it is solved."""
IDLE_MAX = 8
"""Steps that save nothing, for each device in use, after which it is enough."""
ENOUGH = 0.005
"""Above the bound, where the search ends."""


class Search:
    """The placement as it is improved."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        packing = packing_of(problem)
        self.items = [item for item in problem.items if item.device in packing.index]
        self.devices = packing.devices
        self.random = random.Random(problem.seed)
        self.home = [packing.index[item.device] for item in self.items]
        self.at = list(self.home)
        self.price = packing.price_per_h
        self.nodes = [device.node for device in self.devices]
        # Whole numbers, rounded so that what fits them fits in truth.
        self.memory = [math.ceil(item.memory_mb) for item in self.items]
        self.compute = [np.ceil(packing.compute_of(item.demand) / COMPUTE_UNIT).astype(int) for item in self.items]
        self.allowed = [packing.allowed(item.demand) for item in self.items]
        # A device that is over its limits already may stay so; it gets no fuller.
        used_memory, used_compute = self._used()
        self.memory_cap = np.maximum(np.floor(packing.memory_mb).astype(int), used_memory)
        self.compute_cap = np.maximum(np.floor(packing.compute / COMPUTE_UNIT + 1e-9).astype(int), used_compute)
        self.of_group: dict[str, list[int]] = defaultdict(list)
        self.of_model: dict[str, list[int]] = defaultdict(list)
        for i, item in enumerate(self.items):
            self.of_group[item.group].append(i)
            self.of_model[item.model].append(i)
        self.on_device_max = {group: self._device_max(of) for group, of in self.of_group.items()}
        self.on_node_max = {
            group: max(Counter(self.nodes[self.at[i]] for i in of).values()) for group, of in self.of_group.items()
        }
        """So that the replicas of a group never come closer together than they are."""

    def _used(self) -> tuple[np.ndarray, np.ndarray]:
        memory, compute = np.zeros(len(self.devices), int), np.zeros(len(self.devices), int)
        for i, k in enumerate(self.at):
            memory[k] += self.memory[i]
            compute[k] += self.compute[i][k]
        return memory, compute

    def _device_max(self, of: list[int]) -> int:
        first = self.items[of[0]]
        rule = -(-max(first.replicas, len(of)) // max(int(self.allowed[of[0]].sum()), 1))
        return max(rule, *Counter(self.at[i] for i in of).values())

    def price_per_h(self) -> float:
        """Of the devices in use."""
        return float(sum(self.price[k] for k in set(self.at)))

    def moved(self) -> list[int]:
        """Replicas that are not where they began."""
        return [i for i, k in enumerate(self.at) if k != self.home[i]]

    def step(self, limit_s: float) -> None:
        """Improve a neighbourhood."""
        victim, chosen = self._neighbourhood()
        if chosen:
            self._solve(victim, chosen, limit_s)

    def _neighbourhood(self) -> tuple[int, list[int]]:
        """A device that should be empty, and those that it is solved with: some in use, and one empty of each kind."""
        memory, compute = self._used()
        filled = np.maximum(memory / np.maximum(self.memory_cap, 1), compute / np.maximum(self.compute_cap, 1))
        count = Counter(self.at)
        used = sorted(count)
        if not used:
            return 0, []
        waste = [float(self.price[k] * max(1 - filled[k], 0.0)) + 1e-6 for k in used]
        victim = self.random.choices(used, waste)[0]
        chosen, items = [victim], count[victim]
        kinds = set()
        order = sorted(used, key=lambda k: self.random.random() ** (1 / (0.2 + 1 - min(filled[k], 1.0))), reverse=True)
        reach = np.any([self.allowed[i] for i, k in enumerate(self.at) if k == victim], axis=0)
        for k in order:
            if k != victim and reach[k] and len(chosen) < NEIGHBOURS and items + count[k] <= ITEMS_MAX:
                chosen.append(k)
                items += count[k]
        for k in range(len(self.devices)):
            d = self.devices[k]
            kind = (d.tier, d.spot, d.memory_mb, d.compute)
            if k not in count and kind not in kinds:
                kinds.add(kind)
                chosen.append(k)
        return victim, chosen

    def _solve(self, victim: int, chosen: list[int], limit_s: float) -> None:
        model = cp_model.CpModel()
        here = set(chosen)
        inside = [i for i, k in enumerate(self.at) if k in here]
        members = set(inside)
        x: dict[tuple[int, int], cp_model.IntVar] = {}
        spent = {
            name: sum(self.at[i] != self.home[i] for i in self.of_model[name] if i not in members)
            for name in {self.items[i].model for i in inside}
        }
        for i in inside:
            item = self.items[i]
            free = item.movable and not spent[item.model]
            for k in chosen:
                if k == self.at[i] or (self.allowed[i][k] and (free or k == self.home[i])):
                    x[i, k] = model.new_bool_var("")
                    model.add_hint(x[i, k], k == self.at[i])
            model.add_exactly_one(x[i, k] for k in chosen if (i, k) in x)
        used = {k: model.new_bool_var("") for k in chosen}
        now_used = {self.at[i] for i in inside}
        for k in chosen:
            on = [(i, x[i, k]) for i in inside if (i, k) in x]
            model.add(sum(self.memory[i] * var for i, var in on) <= int(self.memory_cap[k]) * used[k])
            model.add(sum(int(self.compute[i][k]) * var for i, var in on) <= int(self.compute_cap[k]) * used[k])
            for _, var in on:  # one that takes nothing uses it too
                model.add_implication(var, used[k])
            model.add_hint(used[k], k in now_used)
        self._keep_apart(model, x, members, chosen)
        moves = []
        for name, already in spent.items():
            moving = [var for i in self.of_model[name] for k in chosen if (var := x.get((i, k))) is not None
                      and k != self.home[i]]  # fmt: skip
            if len(self.of_model[name]) > 1 and moving:
                model.add(sum(moving) <= max(1 - already, 0))
            moves += moving
        units = [round(float(price) / PRICE_UNIT) for price in self.price]
        left = sum(
            round(units[victim] * VICTIM_SHARE * self._part(i, victim)) * var
            for i in inside
            if (var := x.get((i, victim))) is not None
        )
        model.minimize(sum(units[k] * used[k] for k in chosen) + left + sum(moves))
        solver = cp_model.CpSolver()
        solver.parameters.max_time_in_seconds = max(limit_s, 0.01)
        solver.parameters.relative_gap_limit = STEP_GAP
        solver.parameters.num_workers = self.problem.workers
        solver.parameters.random_seed = self.random.getrandbits(30)
        if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return
        for (i, k), var in x.items():
            if solver.boolean_value(var):
                self.at[i] = k

    def _part(self, i: int, k: int) -> float:
        """How much of a device a replica takes."""
        memory = self.memory[i] / max(int(self.memory_cap[k]), 1)
        compute = float(self.compute[i][k]) / max(int(self.compute_cap[k]), 1)
        return max(memory, compute)

    def _keep_apart(
        self, model: cp_model.CpModel, x: dict[tuple[int, int], cp_model.IntVar], members: set[int], chosen: list[int]
    ) -> None:
        by_node: dict[str, list[int]] = defaultdict(list)
        for k in chosen:
            by_node[self.nodes[k]].append(k)
        for group in {self.items[i].group for i in members}:
            of = self.of_group[group]
            if len(of) == 1:
                continue
            outside = Counter(self.nodes[self.at[i]] for i in of if i not in members)
            for node, ks in by_node.items():
                for k in ks:
                    model.add(sum(x[i, k] for i in of if (i, k) in x) <= self.on_device_max[group])
                on = sum(x[i, k] for i in of for k in ks if (i, k) in x)
                model.add(on <= max(self.on_node_max[group] - outside[node], 0))

    def take_back(self) -> None:
        """Undo moves that save nothing: those that can go home while all devices in use stay so."""
        memory, compute = self._used()
        for i in self.moved():
            k, home = self.at[i], self.home[i]
            used = Counter(self.at)
            group = [self.at[j] for j in self.of_group[self.items[i].group] if j != i]
            nodes = Counter(self.nodes[j] for j in group)
            if (
                used[home]
                and memory[home] + self.memory[i] <= self.memory_cap[home]
                and compute[home] + self.compute[i][home] <= self.compute_cap[home]
                and group.count(home) < self.on_device_max[self.items[i].group]
                and nodes[self.nodes[home]] < self.on_node_max[self.items[i].group]
            ):
                self.at[i] = home
                memory[k] -= self.memory[i]
                compute[k] -= self.compute[i][k]
                memory[home] += self.memory[i]
                compute[home] += self.compute[i][home]


def bound_per_h(problem: Problem) -> float:
    """The least price of devices on which the replicas could be, were both divisible: the linear relaxation."""
    packing = packing_of(problem)
    kinds: dict[tuple[str, bool, int, float], list[int]] = defaultdict(list)
    for k, device in enumerate(packing.devices):
        kinds[device.tier, device.spot, device.memory_mb, device.compute].append(k)
    solver = pywraplp.Solver.CreateSolver("GLOP")
    numbers = {kind: solver.NumVar(0, len(ks), "") for kind, ks in kinds.items()}
    memory = {kind: solver.Constraint(-solver.infinity(), 0) for kind in kinds}
    compute = {kind: solver.Constraint(-solver.infinity(), 0) for kind in kinds}
    objective = solver.Objective()
    for kind, number in numbers.items():
        k = kinds[kind][0]
        memory[kind].SetCoefficient(number, -float(packing.memory_mb[k]))
        compute[kind].SetCoefficient(number, -float(packing.compute[k]))
        objective.SetCoefficient(number, float(packing.price_per_h[k]))
    for item in problem.items:
        allowed, takes = packing.allowed(item.demand), packing.compute_of(item.demand)
        fitting = [kind for kind, ks in kinds.items() if allowed[ks[0]]]
        if not fitting:
            continue
        whole = solver.Constraint(1, 1)
        for kind in fitting:
            part = solver.NumVar(0, 1, "")
            whole.SetCoefficient(part, 1)
            memory[kind].SetCoefficient(part, item.memory_mb)
            compute[kind].SetCoefficient(part, float(takes[kinds[kind][0]]))
    return float(solver.Objective().Value()) if solver.Solve() == pywraplp.Solver.OPTIMAL else 0.0


def optimise(problem: Problem, clock: Callable[[], float] = time.monotonic) -> Solution:
    """Look for moves for as long as the problem says.

    Args:
        problem: the fleet.
        clock: seconds.
    """
    end = clock() + problem.limit_s
    search = Search(problem)
    before = search.price_per_h()
    bound = bound_per_h(problem)
    idle = 0
    price = before
    while (left := end - clock()) > 0 and idle < IDLE_MAX * len(set(search.at)) and price > bound * (1 + ENOUGH):
        search.step(min(STEP_S, left))
        idle = 0 if search.price_per_h() < price - PRICE_UNIT else idle + 1
        price = search.price_per_h()
    search.take_back()
    moved, after = search.moved(), search.price_per_h()
    if before - after <= MOVE_PRICE_PER_H * len(moved):
        moved, after = [], before
    moves = tuple(
        Move(
            item.id,
            item.model,
            item.group,
            search.devices[search.home[i]].id,
            search.devices[search.at[i]].id,
        )
        for i, item in enumerate(search.items)
        if i in set(moved)
    )
    return Solution(moves, before, after, bound)


def main() -> None:
    """``python -m headrace.deploy.optimise``: a problem on standard input, its solution on standard output."""
    problem = msgspec.json.decode(sys.stdin.buffer.read(), type=Problem)
    sys.stdout.buffer.write(msgspec.json.encode(optimise(problem)))


if __name__ == "__main__":
    main()
