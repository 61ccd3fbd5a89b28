from __future__ import annotations
import random, time, math, sys
from headrace.core.devices import *
from headrace.deploy.placement import *
from headrace.deploy.rebalance import *
from headrace.deploy.optimise import optimise, bound_per_h


def fleet(count, seed):
    devices = []
    for k in range(count):
        u = k / count
        if u < 0.1:
            tier, mem, per = "a100", 80, 8
        elif u < 0.5:
            tier, mem, per = "l40", 48, 4
        else:
            tier, mem, per = "t4", 16, 1
        node = f"{tier}-{k // per:03d}"
        devices.append(
            Device(f"{node}/gpu{k % per}", node, tier, mem * 1024, 1.0, spot=(k % 5 == 4 and tier != "a100"))
        )
    return devices


def demands(models, seed):
    r = random.Random(seed)
    out = []
    for m in range(models):
        mem = min(max(r.lognormvariate(math.log(1.2), 1.0), 0.2), 40) * 1024
        load = max(r.lognormvariate(math.log(0.03), 1.8), 1e-4)
        n = max(1, math.ceil(load / 0.5))
        n = max(n, 2) if load > 0.05 else n
        u = r.random()
        tiers = (
            ("a100",)
            if u < 0.05
            else ("l40",)
            if u < 0.15
            else ("t4",)
            if u < 0.25 and mem < 14 * 1024
            else ("t4", "l40", "a100")
        )
        if u >= 0.05 and mem > 43 * 1024:
            tiers = ("a100",)
        spot = r.random() < 0.2
        out += [Demand(f"m{m}", mem, load / n, tiers, spot, n)] * n
    return out


if __name__ == "__main__":
    tiers = TIERS
    n = int(sys.argv[1])
    lim = float(sys.argv[2])
    budget = sys.argv[3] == "b"
    ds = fleet(n, 0)
    dm = demands(n, 1)
    t = time.perf_counter()
    p = Packing(ds, tiers)
    t1 = time.perf_counter()
    ch = p.place_all(dm)
    t2 = time.perf_counter()
    print(
        len(dm),
        "placed",
        sum(c.device is not None for c in ch),
        "ms",
        (t2 - t) * 1e3,
        "build",
        (t1 - t) * 1e3,
        "price",
        p.price_in_use_per_h,
    )
    print([c.reason for c in ch if c.device is None][:3])
    print(ch[0].reason, "|", ch[-1].reason)
    items = tuple(
        Item(
            f"r{i}",
            d.group if budget else f"r{i}",
            d.group,
            c.device.id,
            d.memory_mb,
            d.compute,
            d.tiers,
            d.spot,
            d.replicas,
        )
        for i, (d, c) in enumerate(zip(dm, ch))
        if c.device
    )
    pr = Problem(tuple(ds), dict(tiers), items, lim)
    t = time.time()
    b = bound_per_h(pr)
    print("bound", b, time.time() - t, "greedy gap", p.price_in_use_per_h / b - 1)
    t = time.time()
    s = optimise(pr)
    print(time.time() - t, len(s.moves), s.price_per_h, s.price_after_per_h, s.price_after_per_h / s.bound_per_h - 1)
