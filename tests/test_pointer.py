"""How the decoder and the candidates of the memory by alignment share the prediction, also while sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from midigen_jax.model import pointer
from midigen_jax.model.pointer import NONE, Copies
from midigen_jax.sampling.logits_processors import (
    BETWEEN_PHRASES,
    LEAST_FACTOR,
    MOST_LOG_ODDS,
    make_setting_arrays,
    process_logits,
)
from midigen_jax.sampling.settings import DEFAULTS, GenerationSettings
from midigen_jax.vocab import Vocabulary


def mixture():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(3, 5, 12)), jnp.float32)
    token = rng.integers(-1, 12, (3, 5, 4))
    log_odds = np.where(token >= 0, rng.normal(size=token.shape) * 3, NONE)
    return logits, Copies(
        jnp.asarray(token), jnp.asarray(log_odds, jnp.float32), jnp.full(token.shape, DEFAULTS.phrase_bars)
    )


def test_the_mixture_is_one_softmax():
    """Against its formula: each candidate counts as one more outcome, the decoder's as one of weight 1."""
    logits, copies = mixture()
    own = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    weights = np.exp(np.asarray(copies.log_odds, float))
    for token, weight in zip(np.moveaxis(copies.token, -1, 0), np.moveaxis(weights, -1, 0), strict=True):
        own = own + weight[..., None] * (np.arange(12) == token[..., None])
    expected = own / (1 + weights.sum(-1, keepdims=True))
    np.testing.assert_allclose(pointer.mixture(jax.nn.softmax(logits), copies), expected, atol=1e-6)
    targets = jnp.asarray(np.random.default_rng(1).integers(0, 12, (3, 5)))
    picked = np.take_along_axis(expected, np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(pointer.nats(logits, copies, targets), -np.log(picked), atol=1e-5)


def drawn_from(logits, copies, legal=None, **settings):
    """Probabilities with which tokens are drawn."""
    arrays = make_setting_arrays(GenerationSettings(**{"top_p": 1.0} | settings), Vocabulary())
    arrays = arrays._replace(top_k=jnp.int32(logits.shape[-1]))
    copies = copies._replace(log_odds=jnp.where(copies.token >= 0, copies.log_odds + arrays.copy, NONE))
    legal = jnp.ones(logits.shape, bool) if legal is None else legal
    return jax.nn.softmax(process_logits(logits, copies, legal, arrays))


def test_copy_is_monotone():
    """The more of it, the likelier the candidates; none at 0, all of them by twenty times at 1."""
    logits, copies = (jax.tree.map(lambda x: x[0], x) for x in mixture())
    named = np.zeros(logits.shape, bool)
    for row, tokens in enumerate(np.asarray(copies.token)):
        named[row, tokens[tokens >= 0]] = True
    assert named.any(-1).all()
    shares = [
        np.where(named, drawn_from(logits, copies, copy=copy), 0).sum(-1) for copy in (0.0, 0.1, 0.3, 0.5, 0.8, 1.0)
    ]
    assert (np.diff(shares, axis=0) > 0).all()
    own = jax.nn.softmax(logits)
    np.testing.assert_allclose(drawn_from(logits, copies, copy=0.0), own, atol=1e-6)
    more = pointer.mixture(jax.nn.softmax(logits), copies._replace(log_odds=copies.log_odds + MOST_LOG_ODDS))
    np.testing.assert_allclose(drawn_from(logits, copies, copy=1.0), more, atol=1e-6)
    as_learned = drawn_from(logits, copies, copy=0.5)
    np.testing.assert_allclose(as_learned, pointer.mixture(jax.nn.softmax(logits), copies), atol=1e-6)


@pytest.mark.parametrize("phrase_bars", [DEFAULTS.phrase_bars, 3])
def test_what_was_played_between_phrases_is_copied_less_readily(phrase_bars):
    """Still less at a low temperature, which otherwise leaves the candidates' probabilities as they are."""
    logits, copies = (jax.tree.map(lambda x: x[0], x) for x in mixture())
    copies = copies._replace(bars=jnp.broadcast_to(jnp.array([0, 5, phrase_bars, 2 * phrase_bars]), copies.token.shape))
    named = (np.asarray(copies.token)[..., None] == np.arange(12)).any(-2)
    for temperature, factor in ((1.5, 1), (1.0, 1), (0.8, 0.8), (LEAST_FACTOR / 2, LEAST_FACTOR)):
        log_odds = copies.log_odds.at[:, :2].add(BETWEEN_PHRASES + np.log(factor))
        expected = pointer.mixture(jax.nn.softmax(logits), copies._replace(log_odds=log_odds))
        drawn = drawn_from(logits, copies, temperature=temperature, phrase_bars=phrase_bars)
        np.testing.assert_allclose(drawn[named], expected[named], atol=1e-6)
        assert temperature != 1 or np.allclose(drawn, expected, atol=1e-6)
        as_learned = pointer.mixture(jax.nn.softmax(logits), copies)
        drawn = drawn_from(logits, copies, temperature=temperature, phrase_bars=0)
        np.testing.assert_allclose(drawn[named], as_learned[named], atol=1e-6)


def test_temperature_shapes_what_no_candidate_names():
    """All of that together stays as likely as it was."""
    logits, copies = (jax.tree.map(lambda x: x[0], x) for x in mixture())
    for temperature in (0.5, 2.0):
        as_learned = np.asarray(pointer.mixture(jax.nn.softmax(logits), copies))
        drawn = np.asarray(drawn_from(logits, copies, temperature=temperature))
        for row, tokens in enumerate(np.asarray(copies.token)):
            named = np.isin(np.arange(12), tokens)
            np.testing.assert_allclose(drawn[row, named], as_learned[row, named], atol=1e-6)
            rest = np.where(named, 0, np.exp(logits[row] / temperature))
            expected = as_learned[row, ~named].sum() * rest / rest.sum()
            np.testing.assert_allclose(drawn[row, ~named], expected[~named], atol=1e-6)


@pytest.mark.parametrize("temperature", [0.8, 1.0, 1.5])
def test_top_p_cuts_the_unlikely_of_what_no_candidate_names(temperature):
    """All of these together stay as likely as they were: a copy ends as often as was learned."""
    logits, copies = (jax.tree.map(lambda x: x[0], x) for x in mixture())
    as_learned = np.asarray(pointer.mixture(jax.nn.softmax(logits), copies))
    drawn = np.asarray(drawn_from(logits, copies, top_p=0.5, temperature=temperature))
    own = np.asarray(jax.nn.softmax(logits / temperature))
    for row, tokens in enumerate(np.asarray(copies.token)):
        named = np.isin(np.arange(12), tokens)
        np.testing.assert_allclose(drawn[row, named], as_learned[row, named], atol=1e-6)
        order = np.argsort(-own[row])
        before = own[row][order].cumsum() - own[row][order]
        kept = before[order.argsort()] < 0.5
        kept[np.argmax(np.where(named, 0, own[row]))] = True
        new = np.where(kept & ~named, own[row], 0)
        expected = as_learned[row, ~named].sum() * new / new.sum()
        np.testing.assert_allclose(drawn[row, ~named], expected[~named], atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"copy": 1.0}, {"temperature": 1000.0}, {"temperature": 0.001}])
def test_what_is_drawn_is_legal_however_sure_the_candidates_are(settings):
    """The decoder's own share must not round to less than nothing."""
    rng = np.random.default_rng(0)
    rows, n_tokens = 200, 12
    logits = jnp.asarray(rng.normal(size=(rows, n_tokens)) * 5, jnp.float32)
    token = jnp.asarray(rng.integers(-1, n_tokens, (rows, 24)))
    log_odds = jnp.where(token >= 0, jnp.asarray(rng.normal(size=token.shape) + 15, jnp.float32), NONE)
    copies = Copies(token, log_odds, jnp.asarray(rng.integers(0, 33, token.shape)))
    legal = jnp.asarray(rng.random(logits.shape) < 0.3).at[:, 3].set(True)
    drawn = np.asarray(drawn_from(logits, copies, legal, **settings))
    np.testing.assert_allclose(np.where(legal, drawn, 0).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_greedy_is_the_likeliest_as_learned(temperature):
    """The candidate, though it was not played some phrases before, by which it would lose against the decoder's 0."""
    logits, copies = jnp.array([[5.0, 0.0, 0.0]]), Copies(jnp.array([[1]]), jnp.array([[0.2]]), jnp.array([[3]]))
    assert drawn_from(logits, copies).argmax() == 0
    for top_p in (0.3, 0.97):
        arrays = make_setting_arrays(GenerationSettings(top_k=1, top_p=top_p, temperature=temperature), Vocabulary())
        drawn = process_logits(logits, copies, jnp.ones(logits.shape, bool), arrays)
        np.testing.assert_array_equal(np.isfinite(drawn), [[False, True, False]])


def test_where_only_candidates_are_legal_they_alone_are_drawn():
    logits, copies = (jax.tree.map(lambda x: x[0, :1], x) for x in mixture())
    legal = jnp.zeros(logits.shape, bool).at[0, jnp.maximum(copies.token[0], 0)].set(copies.token[0] >= 0)
    drawn = drawn_from(logits, copies, legal, temperature=0.7)
    assert np.isfinite(drawn).all()
    np.testing.assert_allclose(np.where(legal, drawn, 0).sum(), 1, atol=1e-6)


def test_no_copy_is_drawn_that_the_settings_rule_out():
    logits, copies = (jax.tree.map(lambda x: x[0], x) for x in mixture())
    legal = jnp.ones(logits.shape, bool).at[:, copies.token[0, 0]].set(False)
    assert (drawn_from(logits, copies, legal, copy=1.0)[:, copies.token[0, 0]] == 0).all()


def test_without_candidates_the_decoder_alone_decides():
    logits, copies = mixture()
    nothing = copies._replace(token=copies.token * 0 - 1, log_odds=copies.log_odds * 0 + NONE)
    np.testing.assert_allclose(pointer.mixture(jax.nn.softmax(logits), nothing), jax.nn.softmax(logits), atol=1e-7)
    gradient = jax.grad(lambda x: pointer.nats(logits, nothing._replace(log_odds=x), jnp.zeros((3, 5), int)).sum())
    assert (gradient(nothing.log_odds) == 0).all()
