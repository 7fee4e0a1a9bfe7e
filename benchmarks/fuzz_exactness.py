"""Random networks over the whole table of operations, quantized and compared value by value.

    python benchmarks/fuzz_exactness.py --networks 500 --seed 0
    python benchmarks/fuzz_exactness.py --networks 50 --seed 3 --without resize resize_cubic
    python benchmarks/fuzz_exactness.py --only 3-17        one network of seed 3 again, in full

Each network is a graph of random operations; every row of the table has its turn. A random wrapper
(preset, bits, scales, rounding) calibrates or trains it and exports a file. Evaluation, integer
graph and ONNX Runtime must agree in every value. With free scales ONNX Runtime computes integers
only with its optimizations on; what differs with them off is counted apart. So is what differs
where operations run in float. C is compiled and compared where all operations have a form in it.
A network that fails is printed as Python, as small as it still fails.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import onnxruntime
import torch
from fuzz_cases import Case, Outcome, random_case, run, shrink
from fuzz_operations import MAKERS, WEIGHTS, grow

ROWS_PER_NETWORK = 3


def make_case(seed: int, index: int, without: tuple[str, ...] = ()) -> Case:
    """The case of a number; its rows have their turn."""
    rng = random.Random(f"{seed}-{index}")
    for row in without:
        WEIGHTS.pop(row, None)
    rows = [row for row in MAKERS if row not in without]
    first = index * ROWS_PER_NETWORK
    turn = [rows[(first + i) % len(rows)] for i in range(ROWS_PER_NETWORK)]
    return random_case(rng, grow(rng, turn, rng.randint(2, 12)))


@dataclass
class Totals:
    """Sums over all networks."""

    networks: int = 0
    values: int = 0
    differences: Counter[str] = field(default_factory=Counter)
    with_floats: int = 0
    float_values: int = 0
    float_differences: Counter[str] = field(default_factory=Counter)
    free_off: Counter[str] = field(default_factory=Counter)
    floats: Counter[str] = field(default_factory=Counter)
    not_in_c: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, name: str, outcome: Outcome) -> None:
        """Count one network."""
        self.networks += 1
        self.floats.update(outcome.floats)
        self.not_in_c.update([outcome.not_in_c] if outcome.not_in_c else [])
        if outcome.failure:
            self.failures.append(name)
        if outcome.floats:
            self.with_floats += 1
            self.float_values += outcome.values
            self.float_differences.update(outcome.differences)
        else:
            self.values += outcome.values
            self.differences.update(outcome.differences)
            self.free_off["values"] += outcome.values if outcome.free_off else 0
            self.free_off["differ"] += outcome.free_off

    def __str__(self) -> str:
        refused = "".join(f"\n    {n:5} x {why}" for why, n in self.not_in_c.most_common())
        apart = "".join(f"\n    {n:5} x {kind}" for kind, n in self.floats.most_common())
        return (
            f"{self.networks} networks, {len(self.failures)} failed: "
            f"{', '.join(self.failures) or 'none'}\n"
            f"all in integers: {self.networks - self.with_floats} networks, {self.values} values, "
            f"differ: {_words(self.differences)}\n"
            f"  free scales, optimizations off, not promised: {self.free_off['differ']} differ\n"
            f"with operations in float: {self.with_floats} networks, {self.float_values} values, "
            f"differ: {_words(self.float_differences)}{apart}\n"
            f"not in C: {self.not_in_c.total()} networks{refused}"
        )


def _words(counts: Counter[str]) -> str:
    return ", ".join(f"{pair}: {n}" for pair, n in counts.items()) or "nothing was compared"


def report_failure(name: str, case: Case, outcome: Outcome) -> None:
    """Print what failed, and the smallest case that fails alike."""
    smallest = shrink(case, outcome.failure)
    found = run(smallest)
    counts = {pair: n for pair, n in found.differences.items() if n}
    print(f"--- {name} fails: {outcome.error or outcome.differences}")
    print(f"smaller: {found.error or counts} of {found.values} values\n{smallest}", flush=True)


def main() -> int:
    """Run the networks, print the table; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first network")
    parser.add_argument("--without", nargs="*", default=[], help="rows that no network shall have")
    parser.add_argument("--only", help="SEED-NUMBER of one network")
    args = parser.parse_args()
    unknown = set(args.without) - set(MAKERS)
    if unknown:
        parser.error(f"there is no row {sorted(unknown)}; there are: {', '.join(MAKERS)}")
    torch.set_num_threads(1)
    seed, first, last = args.seed, args.first, args.first + args.networks
    if args.only:
        seed, first = map(int, args.only.split("-"))
        last = first + 1
    totals, start = Totals(), time.perf_counter()
    for index in range(first, last):
        name = f"{seed}-{index}"
        case = make_case(seed, index, tuple(args.without))
        outcome = run(case)
        totals.add(name, outcome)
        if args.only:
            print(f"{case}\n{outcome}")
        if outcome.failure:
            report_failure(name, case, outcome)
    seconds = time.perf_counter() - start
    print(f"{totals}\n{seconds:.0f} s, {seconds / max(totals.networks, 1):.2f} s a network")
    print(
        f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, {platform.machine()}, "
        f"one thread, without: {', '.join(args.without) or 'nothing'}"
    )
    return int(bool(totals.failures))


if __name__ == "__main__":
    sys.exit(main())
