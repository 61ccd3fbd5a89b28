"""Where do 1,000 models go on 1,000 devices, how fast, at what price, and how often do they move?

    python -m bench.placement [--quick] [--models 1000] [--seed 1]

Long-tail models (memory and load log-normal, the loaded ones with several replicas) on A100, L40 and T4, some of them
spot; a quarter of the models wants just one kind, a fifth may use spot devices. First-fit, the greedy placement and the
optimiser place the same replicas; the bound is the linear relaxation. Limits are checked by code that shares nothing
with the placement's. Then a day in virtual time through the same objects: models come and go and load changes each
hour, greedy places what starts, and the optimiser looks every so often, with one move per model and day to spend.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.harness import Bar, median, parser, report, say
from headrace.core.devices import TIERS, Device, price_per_h
from headrace.deploy.optimise import bound_per_h, optimise
from headrace.deploy.placement import Choice, Demand, Packing
from headrace.deploy.rebalance import BUDGET_S, Item, Problem, may_begin

BARS = (
    Bar("greedy_ms", at_most=100.0),
    Bar("gap_to_lp", at_most=0.03),
    Bar("violations", at_most=0.0),
    Bar("moves_per_model_day", at_most=1.0),
)
HOUR_S = 3600.0
ANY = ("t4", "l40", "a100")


def fleet(count: int) -> list[Device]:
    """A tenth A100 (8 a node), four tenths L40 (4 a node), half T4; a fifth of the L40 and T4 are spot."""
    devices = []
    for k in range(count):
        part = k / count
        tier, memory_gib, per_node = ("a100", 80, 8) if part < 0.1 else ("l40", 48, 4) if part < 0.5 else ("t4", 16, 1)
        node = f"{tier}-{k // per_node:03d}"
        spot = k % 5 == 4 and tier != "a100"
        devices.append(Device(f"{node}/gpu{k % per_node}", node, tier, memory_gib * 1024, 1.0, spot))
    return devices


def demands_of(model: int, source: random.Random) -> list[Demand]:
    """A model's replicas: at most half a T4 each, and two where it has a load worth the name."""
    memory_gib = min(max(source.lognormvariate(math.log(1.2), 1.0), 0.2), 40.0)
    load = max(source.lognormvariate(math.log(0.03), 1.8), 1e-4)
    count = max(math.ceil(load / 0.5), 2 if load > 0.05 else 1)
    draw = source.random()
    tiers = ("a100",) if draw < 0.05 else ("l40",) if draw < 0.15 else ("t4",) if draw < 0.25 else ANY
    if tiers == ("t4",) and memory_gib > 14:
        tiers = ANY
    one = Demand(f"t/m{model}@1", memory_gib * 1024, load / count, tiers, source.random() < 0.2, count)
    return [one] * count


def items_of(demands: Sequence[Demand], devices: Mapping[int, str], movable: bool = True) -> tuple[Item, ...]:
    """Replicas where they are, as the optimiser takes them."""
    return tuple(
        Item(f"r{k}", str(d.group)[:-2], str(d.group), devices[k], d.memory_mb, d.compute, d.tiers, d.spot, d.replicas)
        for k, d in enumerate(demands)
    )


def violations(devices: Sequence[Device], items: Sequence[Item], at: Mapping[str, str]) -> int:
    """Broken rules, counted from scratch."""
    by_id = {device.id: device for device in devices}
    memory: dict[str, float] = defaultdict(float)
    compute: dict[str, float] = defaultdict(float)
    broken = 0
    for item in items:
        device = by_id[at[item.id]]
        memory[device.id] += item.memory_mb
        compute[device.id] += item.compute or 0.0
        broken += device.tier not in item.tiers or (device.spot and not item.spot)
    for id_, device in by_id.items():
        broken += memory[id_] > 0.9 * device.memory_mb + 0.01
        broken += compute[id_] > 0.8 * device.compute * TIERS[device.tier].speed + 1e-4
    broken += sum(count - 1 for count in Counter((item.group, at[item.id]) for item in items).values())
    return broken


def price(devices: Sequence[Device], used: set[str]) -> float:
    """Of the devices in use, per hour."""
    return sum(price_per_h(device, TIERS) for device in devices if device.id in used)


def first_fit(devices: Sequence[Device], demands: Sequence[Demand]) -> set[str]:
    """The devices that first-fit uses: the largest replica first, onto the first device that takes it."""
    packing = Packing(devices, TIERS)
    for demand in sorted(demands, key=lambda d: -d.memory_mb):
        room = packing.room(demand)
        if room.any():
            packing.take(packing.devices[int(room.argmax())].id, demand)
    return {device.id for k, device in enumerate(packing.devices) if packing.replicas[k]}


def greedy(devices: Sequence[Device], demands: Sequence[Demand], rounds: int) -> tuple[list[Choice], float]:
    """The placement and the milliseconds that it takes, median."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        choices = Packing(devices, TIERS).place_all(demands)
        times.append((time.perf_counter() - started) * 1000)
    return choices, median(times)


class Day:
    """Models that come, go and change, each hour, on devices in virtual time."""

    def __init__(self, devices: Sequence[Device], models: int, seed: int, look_s: float, limit_s: float) -> None:
        self.devices, self.look_s, self.limit_s, self.seed = devices, look_s, limit_s, seed
        self.source = random.Random(seed)
        self.items: dict[str, Item] = {}
        self.moved_at: dict[str, list[float]] = defaultdict(list)
        self.violations = self.started = self.no_room = 0
        self.price_hours = 0.0
        self.next = models
        for model in range(models):
            self.start(demands_of(model, self.source))

    def start(self, demands: Sequence[Demand]) -> None:
        packing = self.packing()
        for demand in demands:
            choice = packing.place(demand)
            if choice.device is None:
                self.no_room += 1
                continue
            self.started += 1
            (item,) = items_of([demand], {0: choice.device.id})
            id_ = f"r{self.started}"
            self.items[id_] = Item(id_, *(getattr(item, name) for name in Item.__struct_fields__[1:]))

    def packing(self) -> Packing:
        packing = Packing(self.devices, TIERS)
        for item in self.items.values():
            packing.take(item.device, item.demand)
        return packing

    def hour(self) -> None:
        """One model in twenty goes and another comes; one in ten has more or fewer replicas."""
        models = sorted({item.group for item in self.items.values()})
        for group in self.source.sample(models, len(models) // 20):
            self.items = {id_: item for id_, item in self.items.items() if item.group != group}
            self.next += 1
            self.start(demands_of(self.next, self.source))
        for group in self.source.sample(models, len(models) // 10):
            of = [item for item in self.items.values() if item.group == group]
            if of and self.source.random() < 0.5 and len(of) > 1:
                del self.items[of[-1].id]
            elif of:
                self.start([replace(of[0].demand, replicas=len(of) + 1)])

    def look(self, now: float) -> None:
        """The optimiser's turn, and its moves, each with the old replica in place until the new one is."""
        spent = {model for model, at in self.moved_at.items() if now - at[-1] < BUDGET_S}
        items = tuple(
            Item(*(getattr(i, name) for name in Item.__struct_fields__[:-1]), movable=i.model not in spent)
            for i in self.items.values()
        )
        solution = optimise(Problem(tuple(self.devices), TIERS, items, self.limit_s, self.seed))
        waiting = list(solution.moves)
        while begun := may_begin(waiting, self.items, self.packing()):
            for move in begun:
                old = self.items[move.replica]
                fields = {name: getattr(old, name) for name in Item.__struct_fields__}
                self.items[old.id] = Item(**(fields | {"device": move.target}))
                self.moved_at[move.model].append(now)
            waiting = [move for move in waiting if move not in begun]

    def run(self) -> None:
        for hour in range(24):
            self.hour()
            if hour * HOUR_S % self.look_s < HOUR_S:
                self.look(hour * HOUR_S)
            at = {id_: item.device for id_, item in self.items.items()}
            self.violations += violations(self.devices, list(self.items.values()), at)
            self.price_hours += price(self.devices, set(at.values()))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--models", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=1)
    a = arguments.parse_args()
    limit_s, look_s, think_s = (15.0, 12 * HOUR_S, 4.0) if a.quick else (80.0, 3 * HOUR_S, 20.0)
    devices, source = fleet(1000), random.Random(a.seed)
    demands = [demand for model in range(a.models) for demand in demands_of(model, source)]
    say(f"{a.models} models, {len(demands)} replicas, {len(devices)} devices")
    choices, greedy_ms = greedy(devices, demands, 3 if a.quick else 9)
    placed = {k: c.device.id for k, c in enumerate(choices) if c.device is not None}
    if len(placed) < len(demands):
        raise SystemExit("bench: the fleet is too small for the models")
    items = items_of(demands, placed)
    problem = Problem(tuple(devices), TIERS, items, limit_s, a.seed)
    bound = bound_per_h(problem)
    say(f"the optimiser has {limit_s:g} s")
    started = time.monotonic()
    solution = optimise(problem)
    optimise_s = time.monotonic() - started
    before = {item.id: item.device for item in items}
    after = before | {move.replica: move.target for move in solution.moves}
    broken = violations(devices, items, before) + violations(devices, items, after)
    most_moves = max(Counter(move.model for move in solution.moves).values(), default=0)
    say("a day with the optimiser")
    day = Day(devices, a.models, a.seed, look_s, think_s)
    day.run()
    say("a day without")
    alone = Day(devices, a.models, a.seed, 1e9, 0.0)
    alone.look = lambda now: None  # type: ignore[method-assign]
    alone.run()
    moves = {model: len(at) for model, at in day.moved_at.items()}
    figures = {
        "greedy_ms": greedy_ms,
        "gap_to_lp": price(devices, set(after.values())) / bound - 1,
        "gap_greedy": price(devices, set(before.values())) / bound - 1,
        "gap_first_fit": price(devices, first_fit(devices, demands)) / bound - 1,
        "optimise_s": optimise_s,
        "moves": float(len(solution.moves)),
        "moves_per_model_most": float(most_moves),
        "violations": float(broken + day.violations),
        "moves_per_model_day": float(max(moves.values(), default=0)),
        "moves_per_model_day_mean": sum(moves.values()) / a.models,
        "day_saved_share": 1 - day.price_hours / alone.price_hours,
    }
    context = {"models": a.models, "replicas": len(demands), "seed": a.seed, "limit_s": limit_s, "no_room": day.no_room}
    report("placement", figures, context, BARS)


if __name__ == "__main__":
    main()
