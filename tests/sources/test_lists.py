"""The sources whose answers are targets, against plain Python, worked samples, closed forms and machines that check."""

import pytest
import torch

from tests.reference import list_sources as reference
from tests.sources.common import assert_rows_do_not_depend_on_the_call, given
from upscale.sources.lists import TASKS, ListsSource
from upscale.sources.noisy_set import NoisySetSource
from upscale.sources.rewriting import RewritingSource
from upscale.sources.stack import StackSource

CASES = [
    *((ListsSource, dict(vocabulary=256, task=task, items=8, values=10)) for task in TASKS),
    (ListsSource, dict(vocabulary=256, task="set", items=5, values=4, loss="all")),
    (ListsSource, dict(vocabulary=1000, task="delete", items=6, values=900)),
    (StackSource, dict(vocabulary=256, operations=12, values=14)),
    (StackSource, dict(vocabulary=256)),
    *((RewritingSource, dict(vocabulary=256, task=task)) for task in ("mixed", "deduct", "abduct", "induct")),
    (RewritingSource, dict(vocabulary=1007, symbols=1000)),
    (NoisySetSource, dict(vocabulary=256, values=9, total=17)),
    (NoisySetSource, dict(vocabulary=1000, values=998, total=40)),
    (NoisySetSource, dict(vocabulary=3, values=1, total=2)),
]


def name(value):
    return value.__name__ if isinstance(value, type) else "-".join(map(str, value.values()))


@pytest.mark.parametrize(("kind", "arguments"), CASES, ids=name)
def test_rows_are_those_of_the_definition_token_for_token(kind, arguments):
    """Against plain Python on the same random words, targets included."""
    oracle = getattr(reference, kind.__name__)(**arguments)
    length = 300 if kind is RewritingSource else 60
    stream, conditions, seeds = given(3, 4, length, arguments["vocabulary"])
    written = kind(**arguments).write(stream, conditions, seeds)
    assert written.tolist() == oracle.write(stream, conditions.to(torch.int16), seeds).tolist()
    all_targets = kind is NoisySetSource or arguments.get("loss") == "all"
    assert written.dtype == (torch.uint8 if all_targets and arguments["vocabulary"] <= 256 else torch.int16)
    assert (written >= 0).all() == all_targets


@pytest.mark.parametrize(("kind", "arguments"), CASES[1::3], ids=name)
def test_a_lanes_rows_do_not_depend_on_who_shares_the_call(kind, arguments):
    assert_rows_do_not_depend_on_the_call(kind(**arguments), vocabulary=arguments["vocabulary"])


@pytest.mark.parametrize(
    ("task", "x", "query", "answer"),
    [
        ("identity", [3, 1, 3, 7], None, [3, 1, 3, 7]),
        ("reverse", [9, 9, 2, 5], None, [5, 2, 9, 9]),
        ("sort", [4, 3, 2, 1], None, [1, 2, 3, 4]),
        ("set", [3, 1, 3, 7], None, [3, 1, 7, 11]),
        ("set", [5, 5, 5, 5], None, [5, 11, 11, 11]),
        ("union", [9, 2, 4, 6], None, [9, 2, 4, 6]),
        ("union", [3, 1, 1, 7], None, [3, 1, 7, 11]),
        ("delete", [3, 1, 3, 7], 3, [1, 3, 7, 11]),
        ("delete", [3, 1, 3, 7], 7, [3, 1, 3, 11]),
        ("delete", [3, 1, 3, 7], 2, [3, 1, 3, 7]),
    ],
)
def test_answers_of_worked_samples(task, x, query, answer):
    """Against samples that were worked out by hand from the published definitions."""
    source = ListsSource(vocabulary=12, task=task, items=4, values=10)
    given = [None if each is None else torch.tensor([each]) for each in (x, query if query is None else [query])]
    assert source._answer(*given).tolist() == [answer]


def test_a_row_of_one_sample_scores_what_the_published_code_scores():
    """Against its rows at 64 items: 129 tokens, of which tokens 65 on are targets; a set has 47.3 on average, and
    more than half of delete's queries are not there."""

    def rows(source, length):
        stream, conditions, seeds = given(20, 100, length)
        return source.write(stream, conditions, seeds).flatten(0, 1)

    identity = rows(ListsSource(vocabulary=256, task="identity"), 129)
    assert ((identity >= 0) == (torch.arange(129) >= 65)).all()
    targets = (rows(ListsSource(vocabulary=256, task="set"), 129) >= 0).sum(dim=1).float()
    assert abs(targets.mean() - 99 * (1 - (98 / 99) ** 64)) < 5 * targets.std() / len(targets) ** 0.5
    whole = ((rows(ListsSource(vocabulary=256, task="delete"), 131) >= 0).sum(dim=1) == 64).float()
    assert abs(whole.mean() - (98 / 99) ** 64) < 5 * whole.std() / len(whole) ** 0.5


def test_stacks_keep_their_invariants():
    """Against a machine that reads the operations: never empty, no value twice, even final sizes with mean 11.05."""
    stream, conditions, seeds = given(10, 100, 129)
    sizes = []
    for row in StackSource(vocabulary=256).write(stream, conditions, seeds).flatten(0, 1).tolist():
        tokens, stack = [token if token >= 0 else -1 - token for token in row], []
        for operation in tokens[:64]:
            assert operation not in stack
            if operation:
                stack.append(operation)
            else:
                stack.pop()
            assert stack
        assert tokens[64] == 100 and tokens[65 : 65 + len(stack)] == stack[::-1]
        assert set(tokens[65 + len(stack) :]) == {101}
        assert [token >= 0 for token in row] == [65 <= place < 65 + len(stack) for place in range(129)]
        sizes.append(len(stack))
    sizes = torch.tensor(sizes).float()
    assert (sizes % 2 == 0).all() and abs(sizes.mean() - 11.05) < 5 * sizes.std() / len(sizes) ** 0.5


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (ListsSource, dict(task="shuffle"), "task is 'shuffle'; allowed: identity, reverse, sort, set, union, delete"),
        (ListsSource, dict(task="union", items=5), "items is 5; allowed: 1 or more, even for union"),
        (ListsSource, dict(task="set", values=255), "values is 255; allowed: 2 to the vocabulary less two .254."),
        (ListsSource, dict(task="set", loss="some"), "loss is 'some'; allowed: answer, all"),
        (StackSource, dict(values=64), "values is 64; allowed: more than operations .64., to 254"),
        (StackSource, dict(operations=1), "operations is 1; allowed: 2 or more"),
        (NoisySetSource, dict(values=255), "values is 255; allowed: 1 to the vocabulary less two .254."),
        (RewritingSource, dict(task="guess"), "task is 'guess'; allowed: deduct, abduct, induct, mixed"),
        (RewritingSource, dict(symbols=250), "symbols is 250; allowed: 68 to 249"),
        (NoisySetSource, dict(total=1), "total is 1; allowed: 2 or more"),
    ],
)
def test_mistakes_are_named(kind, arguments, words):
    with pytest.raises(ValueError, match=words):
        kind(**{"vocabulary": 256, **arguments})
