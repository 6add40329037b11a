"""What the page of a study shows of its differences: those that matter, and whether its bars are met."""

from __future__ import annotations

from collections.abc import Iterator

from study_differences import Difference, Group, Place, Study, share_of

# Bar 1: the shares of the data, in percent, at which `full` is to reach from scratch with all of it.
REACHING = {"transfer": (50.0, 25.0), "compression": (25.0,)}
REPORTED = (50.0, 25.0, 10.0, 5.0)
MOST = 50.0  # bar 2: up to here `full` is to be above the others
LENGTHS = ("full_half", "full", "full_long")  # bar 3: each beside twice as many steps from scratch
LEAD = 2.0  # the gate: so far is the teacher to be above the best from scratch


def differences(study: Study, place: Place) -> Iterator[Difference]:
    """Every difference that matters of which both sides have run."""
    asked: list[tuple[Group, Group]] = list(beside_scratch(study, place, "full"))
    for arm in ("kl", "cab"):
        asked += [(("full", fraction), (arm, fraction)) for fraction in study.fractions]
    for best in (study.best_scratch(place), equal_steps(study, place)):
        if best:
            asked += [(("full", study.labelled(share)), best) for share in REPORTED]
    asked += beside_scratch(study, place, "full_half")
    asked += beside_twice_the_steps(study, place)
    for a, b in study.compare:
        asked += [((a, fraction), (b, fraction)) for fraction in study.fractions]
    for a_group, b_group in dict.fromkeys(asked):
        if found := study.difference(place, a_group, b_group):
            yield found


def equal_steps(study: Study, place: Place) -> Group | None:
    """The best from scratch with all of the data and the steps of `full`; None where either is missing."""
    best = study.best_scratch(place)
    counts = {study.steps(place, ("full", fraction)) for fraction in study.fractions} - {None}
    return study.baseline(place, best[1], counts.pop()) if best and len(counts) == 1 else None


def beside_scratch(study: Study, place: Place, arm: str) -> Iterator[tuple[Group, Group]]:
    """`arm` and the best from scratch with the same share of the data, whether they have run or not."""
    for fraction in study.fractions:
        yield (arm, fraction), study.baseline(place, fraction) or ("scratch", fraction)


def beside_twice_the_steps(study: Study, place: Place) -> Iterator[tuple[Group, Group]]:
    """The full method, and the best from scratch with twice its steps and the same share of the data.

    A share of which no such pair has run gives one that has not.
    """
    for fraction in study.fractions:
        pairs = []
        for arm in LENGTHS:
            steps = study.steps(place, (arm, fraction))
            best = None if steps is None else study.baseline(place, fraction, 2 * steps)
            pairs += [] if best is None else [((arm, fraction), best)]
        yield from pairs or [(("full", fraction), ("scratch of twice the steps", fraction))]


def bars(study: Study, place: Place) -> Iterator[tuple[str, str]]:
    """(bar, `met`, `missed by` or `not run`) of a setting and student."""
    best = study.best_scratch(place)
    against = "from scratch" if best is None else f"the best from scratch (`{best[0]}`)"
    teacher = None if best is None else study.teacher(place, best[1])
    if best is None or teacher is None:
        lead = "not run"
    else:
        points = teacher - float(study.top1[study.group(place, best)].mean())
        lead = f"{'met' if points >= LEAD else 'missed'}, it is {points:+.2f}"
    yield f"gate: the teacher at least {LEAD:g} points above {against} at 100%", lead
    for share in REACHING.get(study.scratch_of.get(place[0], place[0]), ()):
        fraction = study.labelled(share)
        asked = [] if best is None else [(("full", fraction), best)]
        yield (
            f"`full` at {fraction} at least as good as {against} at 100%",
            verdict(study, place, asked, strict=False),
        )
    low = [fraction for fraction in study.fractions if share_of(fraction) <= MOST]
    for arm in ("kl", "cab"):
        asked = [(("full", fraction), (arm, fraction)) for fraction in low]
        yield (
            f"`full` above `{arm}` at every fraction up to {MOST:g}%",
            verdict(study, place, asked, strict=True),
        )
    yield (
        "`full_half` reaches the best from scratch with the same share, whatever its steps",
        verdict(study, place, list(beside_scratch(study, place, "full_half")), strict=False),
    )
    yield (
        "`full`, shorter or longer, reaches the best from scratch with twice its steps and the same share",
        verdict(study, place, list(beside_twice_the_steps(study, place)), strict=False),
    )


def verdict(study: Study, place: Place, asked: list[tuple[Group, Group]], strict: bool) -> str:
    """Whether a is at least b (strict: above b) in every pair asked for; the interval where it is closest."""
    found = [study.difference(place, a, b) for a, b in asked]
    run = sorted((each for each in found if each), key=lambda each: each.mean)
    if not run:
        return "not run"
    arms = {a[0] for a, _ in asked}
    absent = [a[1] for (a, _), each in zip(asked, found, strict=True) if each is None]
    missed = [each for each in run if each.mean < 0 or (strict and each.mean == 0)]
    first = run[0]
    between = f"(95 % interval {first.low:+.2f} to {first.high:+.2f}{', one seed' * (min(first.seeds) < 2)})"

    def where(each: Difference) -> str:
        return f"{each.a[1]} (`{each.a[0]}`)" if len(arms) > 1 else each.a[1]

    left_out = f"not run at {', '.join(absent)}"
    if missed:
        others = "".join(f", by {abs(each.mean):.2f} at {where(each)}" for each in missed[1:])
        text = f"missed by {abs(first.mean):.2f} at {where(first)} {between}{others}"
        return f"{text}; {left_out}" if absent else text
    if absent:
        return f"{left_out}; elsewhere ahead by {first.mean:.2f} or more {between}"
    return f"met by {first.mean:.2f}{' or more' * (len(run) > 1)} {between}"
