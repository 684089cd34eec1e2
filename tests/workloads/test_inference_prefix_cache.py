"""What is kept of prompts: the longest known beginning is found, with its own columns, within its memory."""

import os

import torch
from hypothesis import given
from hypothesis import strategies as st

from workloads.inference.prefix_cache import PrefixCache

TOKEN_BYTES = 2 * 2 * 4  # two layers, keys and values, one number of 4 bytes each


def layers(tokens):
    """Columns that say which tokens came before them, as those of a model do."""
    read = torch.tensor([hash(tuple(tokens[: n + 1])) % 9973 for n in range(len(tokens))], dtype=torch.float32)
    keys = read.reshape(1, 1, -1, 1)
    return [(keys, keys + 1), (keys + 2, keys + 3)]


def found(cache, owner, tokens):
    """How many of the first tokens are known; their columns are those of these tokens."""
    length, pieces = cache.find(owner, tokens)
    if not length:
        assert not pieces
        return 0
    for number, (keys, values) in enumerate(layers(tokens[:length])):
        for which, true in enumerate((keys, values)):
            assert torch.equal(torch.cat([piece[number][which] for piece in pieces], dim=2), true)
    assert length == sum(piece[0][0].shape[2] for piece in pieces)
    return length


def shared(one, other):
    return len(os.path.commonprefix([list(one), list(other)]))


prompts = st.lists(st.tuples(st.sampled_from(["base", "sql"]), st.text("ab", max_size=8)), max_size=30)


@given(prompts, st.sampled_from([4, 12, 10_000]))
def test_of_what_was_read_the_longest_beginning_is_found_and_memory_is_bounded(asked, tokens_kept):
    cache, kept = PrefixCache(tokens_kept * TOKEN_BYTES), []
    for owner, text in asked:
        prompt = [ord(letter) for letter in text]
        length = found(cache, owner, prompt)
        longest = max((shared(text, other) for of, other in kept if of == owner), default=0)
        assert length == longest if tokens_kept == 10_000 else length <= longest
        cache.keep(owner, prompt, layers(prompt))
        kept.append((owner, text))
        assert found(cache, owner, prompt) == min(len(prompt), tokens_kept)
        edges = list(cache._by_use)
        assert cache.bytes == sum(len(edge.tokens) for edge in edges) * TOKEN_BYTES <= tokens_kept * TOKEN_BYTES
        order = {edge: place for place, edge in enumerate(edges)}
        assert all(order[child] < order[edge] for edge in edges for child in edge.children.values())
    cache.forget("base")
    assert found(cache, "base", [97]) == 0
    cache.forget("sql")
    assert (cache.bytes, len(cache._by_use)) == (0, 0)


def test_what_nobody_used_for_longest_goes_first_and_a_shared_beginning_stays():
    cache = PrefixCache(8 * TOKEN_BYTES)
    for prompt in ([1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 3, 4]):
        cache.keep(None, prompt, layers(prompt))
    cache.keep(None, [7, 8, 9], layers([7, 8, 9]))
    assert [found(cache, None, prompt) for prompt in ([1, 2, 3, 4], [1, 2, 5, 6], [7, 8, 9])] == [4, 2, 3]
