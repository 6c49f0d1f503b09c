"""The family `attention`: what its cases count, and how documents are cut."""

import pytest
import torch

from kernelbench.families._documents import Documents, lengths_of
from kernelbench.families.attention import FAMILY, AttentionCase
from kernelbench.spec import DType, Mode


def case(**axes: object) -> AttentionCase:
    return AttentionCase(dtype=DType.fp32, mode=Mode.fwd, B=2, Hq=4, Hk=2, D=16, **axes)  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("N", "Nk"), [(1, 0), (7, 0), (5, 12), (1, 9)])
def test_pairs_are_the_keys_that_each_query_sees(N: int, Nk: int, causal: bool) -> None:
    here = case(N=N, Nk=Nk, causal=causal)
    K = Nk or N
    seen = torch.ones(N, K).tril(K - N) if causal else torch.ones(N, K)
    assert here.pairs == 2 * int(seen.sum())
    assert FAMILY.cost(here).flops == 4 * 4 * 16 * here.pairs


@pytest.mark.parametrize("documents", ["four", "mixed", "corpus"])
@pytest.mark.parametrize("N", [1, 41, 4096, 32768])
def test_documents_add_up_and_see_none_of_each_other(documents: str, N: int) -> None:
    """By name as by the word for it, and the same again."""
    lengths = lengths_of(documents, N)  # type: ignore[arg-type]
    assert (
        sum(lengths) == N and min(lengths) >= 0 and lengths == lengths_of(Documents(documents), N)
    )
    axes = {"dtype": DType.fp32, "mode": Mode.fwd, "Hq": 2, "Hk": 1, "D": 16, "causal": True}
    here = AttentionCase(B=1, N=N, documents=Documents(documents), **axes)  # type: ignore[arg-type]
    assert here.pairs == sum(n * (n + 1) // 2 for n in lengths)
    assert (here.starts[-1], here.longest) == (N, max(lengths))


def test_the_corpus_has_the_shares_that_are_quoted() -> None:
    lengths = lengths_of(Documents.corpus, 1 << 24)
    for most, share in ((500, 0.47), (2048, 0.87)):
        assert abs(sum(n <= most for n in lengths) / len(lengths) - share) < 0.03


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"N": 4, "Nk": 3, "causal": True}, "at least as many keys as queries, got 3 and 4"),
        ({"N": 4, "documents": Documents.four}, "B is 1, Nk is 0"),
        ({"N": 0}, "at least 1"),
    ],
)
def test_cases_that_there_cannot_be_are_refused(axes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        case(**axes)
