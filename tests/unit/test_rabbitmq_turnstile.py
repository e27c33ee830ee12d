"""Which delivery starts next, without a broker."""

from hypothesis import given
from hypothesis import strategies as st

from worker.adapters.rabbitmq.turnstile import PATIENCE, Turnstile


def arrivals(*names: str, limit: int = 100) -> Turnstile[str]:
    """Fill a turnstile: `tool2` joins the lane `tool`, `TOOL2` its high lane."""
    turnstile: Turnstile[str] = Turnstile(limit)
    for name in names:
        turnstile.arrive(name, lane=name.rstrip("0123456789").lower(), high=name.isupper())
    return turnstile


def entered(turnstile: Turnstile[str]) -> list[str]:
    """Let in all that may."""
    names = []
    while (name := turnstile.enter()) is not None:
        names.append(name)
    return names


def test_lanes_take_turns() -> None:
    """A lane with many waiting holds up no other lane; within a lane the first comes first."""
    assert entered(arrivals("a1", "a2", "a3", "b1", "c1", "c2")) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_high_lanes_go_first() -> None:
    """All high lanes, in turn, come before the others."""
    assert entered(arrivals("a1", "b1", "B1", "B2", "A1")) == ["B1", "A1", "B2", "a1", "b1"]


def test_nobody_starves() -> None:
    """In an endless stream of high ones, every PATIENCE-th start is another's."""
    turnstile = arrivals(*(f"A{n}" for n in range(3 * PATIENCE)), "b1", "b2")
    order = entered(turnstile)
    assert [order.index("b1"), order.index("b2")] == [PATIENCE - 1, 2 * PATIENCE - 1]


def test_only_so_many_are_inside() -> None:
    """Beyond the limit nobody enters until somebody leaves."""
    turnstile = arrivals("a1", "a2", "a3", limit=2)
    assert entered(turnstile) == ["a1", "a2"]
    assert (turnstile.inside, turnstile.waiting) == (2, 1)
    turnstile.leave()
    assert entered(turnstile) == ["a3"]


def test_all_who_wait_can_be_sent_home() -> None:
    """After clear nobody waits, and who is inside stays."""
    turnstile = arrivals("a1", "a2", "B1", "c1", limit=1)
    assert turnstile.enter() == "B1"
    assert sorted(turnstile.clear()) == ["a1", "a2", "c1"]
    assert (turnstile.inside, turnstile.waiting) == (1, 0)
    turnstile.leave()
    assert turnstile.enter() is None


@given(st.lists(st.sampled_from(["a", "b", "A", "B", None, "leave"])), st.integers(1, 3))
def test_everyone_enters_once_and_never_too_many(steps: list[str | None], limit: int) -> None:
    """Whatever the order of arriving, entering and leaving, nobody is lost or let in twice."""
    turnstile: Turnstile[int] = Turnstile(limit)
    came, went = 0, []
    for step in steps:
        if step == "leave":
            if turnstile.inside:
                turnstile.leave()
        elif step is None:
            went.append(turnstile.enter())
        else:
            turnstile.arrive(came, lane=step.lower(), high=step.isupper())
            came += 1
        assert turnstile.inside <= limit
    inside = [one for one in went if one is not None]
    assert sorted([*inside, *turnstile.clear()]) == list(range(came))
