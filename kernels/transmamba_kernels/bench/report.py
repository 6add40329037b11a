"""The table, the JSON file and the plot of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PHASES = ("inference", "forward", "backward")


def header(machine: dict[str, Any]) -> str:
    return (
        f"{machine['device']}: copy {machine['copy_gb_per_s']:.0f} GB/s, "
        f"exp2 {machine['exp2_per_ns']:.0f} per ns\n"
        "milliseconds, medians; shares of the copy bandwidth and of the exp2 rate, forward and backward;\n"
        "saved: bytes an element kept for the backward beyond the inputs; peak: MB of forward and backward\n"
        f"{'':<30}{'inference':>10}{'forward':>10}{'backward':>10}"
        "  copy f      b exp2 f      b   saved     peak"
    )


def case_table(rows: list[dict[str, Any]]) -> str:
    """The lines of one case."""
    lines = [f"\n{rows[0]['op']}  {rows[0]['label']}  {rows[0]['dtype']}"]
    for row in rows:
        if "error" in row:
            lines.append(f"  {row['implementation']:<28} {row['error']}")
            continue
        times = "".join(_number(row.get(f"{phase}_ms"), 10, 4) for phase in PHASES)
        graph = "".join(_number(row.get(f"{phase}_graph_ms"), 9, 4) for phase in PHASES)
        shares = "".join(
            _percent(row.get(f"{kind}_share_{phase}"))
            for kind in ("copy", "exp2")
            for phase in ("forward" if "forward_ms" in row else "inference", "backward")
        )
        saved = _number(row.get("saved_bytes_per_element"), 8, 2)
        peak = _number(None if row.get("peak_bytes") is None else row["peak_bytes"] / 1e6, 9, 1)
        graphs = f"  graphed{graph}" if graph.strip(" -") else ""
        lines.append(f"  {row['implementation']:<28}{times} {shares}{saved}{peak}{graphs}")
    return "\n".join(lines)


def _number(value: float | None, width: int, digits: int) -> str:
    return " " * (width - 1) + "-" if value is None else f"{value:{width}.{digits}f}"


def _percent(value: float | None) -> str:
    return "      -" if value is None else f"{100 * value:6.1f}%"


def plot(rows: list[dict[str, Any]], machine: dict[str, Any], path: Path) -> str:
    """Writes a PNG with a bar for every case and implementation; returns a line that says so, or why not."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: matplotlib is not installed"
    rows = [row for row in rows if row.get("forward_ms") or row.get("inference_ms")]
    if not rows:
        return "no plot: nothing was measured"
    implementations = list(dict.fromkeys(row["implementation"] for row in rows))
    labels = list(dict.fromkeys(f"{row['op']}\n{row['label']}" for row in rows))
    figure = Figure(figsize=(14, 2 + 0.7 * len(labels)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    rivals = [[row for row in rows if f"{row['op']}\n{row['label']}" == label] for label in labels]
    height = 0.85 / max(len(case) for case in rivals)
    for phase, axis in zip(("forward", "backward"), axes, strict=True):
        for i, implementation in enumerate(implementations):
            places, times = [], []
            for middle, case in enumerate(rivals):
                for turn, row in enumerate(case):
                    if row["implementation"] == implementation and _time(row, phase):
                        places.append(middle + (turn - (len(case) - 1) / 2) * height)
                        times.append(_time(row, phase))
            bars = axis.barh(places, times, height, label=implementation, color=f"C{i}")
            axis.bar_label(bars, fmt="%.3g", fontsize=7, padding=2)
        axis.set_xscale("log")
        axis.margins(x=0.12)
        axis.set_xlabel(f"{phase}, ms (median)")
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(implementations))
    figure.suptitle(f"{machine['device']}, {rows[0]['dtype']}", x=0.99, ha="right", fontsize=9)
    figure.savefig(path, dpi=140)
    return f"plot: {path}"


def _time(row: dict[str, Any], phase: str) -> float | None:
    found = row.get(f"{phase}_ms")
    return row.get("inference_ms") if phase == "forward" and found is None else found
