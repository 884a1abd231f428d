"""Print the README's table of speeds and draw speed against the number of seeds.

    python benchmarks/report.py [--network small] [--device cpu] [--out benchmarks/pictures/speed.png]

Reads the last record of `records/peers.jsonl`.
"""

import argparse
import json
import statistics
from pathlib import Path

import work
from matplotlib.figure import Figure

PICTURES = Path(__file__).parent / "pictures"

# Color and marker of each peer.
STYLES = {"fdqn": ("#0072b2", "o"), "jax": ("#d55e00", "s"), "rejax": ("#cc79a7", "^"), "sb3": ("#555555", "D")}
STYLES |= {"torch": ("#999999", "v"), "one by one": ("#56b4e9", "P"), "fdqn in gymnasium": ("#009e73", "X")}
NAMES = {
    "sb3": "Stable-Baselines3, one seed",
    "torch": "imperative PyTorch, one seed",
    "one by one": "fdqn, one seed after the other",
    "fdqn in gymnasium": "fdqn, in Gymnasium's CartPole",
}


def last_results(network: str, device: str) -> tuple[dict, dict[int, dict[str, list[float]]]]:
    """Return the newest record of a network and device, and its rates: `{seeds: {peer: rates}}`."""
    for line in reversed((work.RECORDS / "peers.jsonl").read_text().splitlines()):
        record = json.loads(line)
        rates = {
            result["seeds"]: {name: peer["rates"] for name, peer in result["peers"].items()}
            for result in record["results"]
            if result["network"] == network and "fdqn" in result["peers"]
        }
        if len(rates) > 1 and record.get("kind", "cpu") == device:
            return record, rates
    raise SystemExit(
        f"no record of the {network} network on {device} in {work.RECORDS / 'peers.jsonl'}; run benchmarks/peers.py"
    )


def table(rates: dict[int, dict[str, list[float]]]) -> str:
    """Format a row per peer and a column per number of seeds: seed-updates/s, and the ratio of fdqn with its range."""
    peers = list(dict.fromkeys(name for result in rates.values() for name in result))
    lines = [f"| seed-updates/s, seeds: | {' | '.join(map(str, rates))} |", "|---|" + "--:|" * len(rates)]
    for name in peers:
        cells = [_cell(name, result) for result in rates.values()]
        lines.append(f"| {NAMES.get(name, name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(name: str, result: dict[str, list[float]]) -> str:
    if name not in result:
        return ""
    rate = f"{statistics.median(result[name]):,.0f}"
    if name == "fdqn":
        return f"**{rate}**"
    ratios = [a / b for a, b in zip(result["fdqn"], result[name], strict=True)]
    return f"{rate} ({statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}])"


def draw(path: Path, rates: dict[int, dict[str, list[float]]], title: str) -> None:
    """Draw speed against seeds, one line per peer with the range of its rounds."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    versions = [name for name in next(iter(rates.values())) if name.startswith("jax")]
    for name in dict.fromkeys(name for result in rates.values() for name in result):
        seeds = [s for s in rates if name in rates[s]]
        middle = [statistics.median(rates[s][name]) for s in seeds]
        color, marker = STYLES[name.split(",")[0]]
        style = "--" if name in versions[1:] else "-"
        axes.plot(seeds, middle, style, color=color, marker=marker, label=NAMES.get(name, name))
        low, high = [min(rates[s][name]) for s in seeds], [max(rates[s][name]) for s in seeds]
        axes.fill_between(seeds, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel="seeds", ylabel="updates a second over all seeds", title=title)
    axes.set_xticks(list(rates), list(map(str, rates)))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURES / "speed.png")
    parser.add_argument("--network", choices=tuple(work.SIZES), default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    record, rates = last_results(arguments.network, arguments.device)
    print(table(rates))
    print(f"\ncommit {record['commit']}, {record['date']}, {record['device']}, torch {record['versions']['torch']}")
    draw(arguments.out, rates, f"{'-'.join(map(str, work.SIZES[arguments.network]))}, {record['device']}")
    work.say(f"drawn: {arguments.out}")


if __name__ == "__main__":
    main()
