"""Sampling as a textbook would write it, for one row, in Python: the oracle of the sampler's tests."""

from __future__ import annotations

from collections import Counter

import numpy as np

GRAIN = 2.0**-33


def edited(logits, params, prompt=(), output=(), ends=(), bad_words=(), mask=None):
    """The logits [V] of one row after everything that comes before the temperature; ``mask``: all else is banned."""
    out = np.array([x if mask is None or i in mask else -np.inf for i, x in enumerate(logits)], np.float32)
    if params.allowed_token_ids is not None:
        out = np.array([x if i in set(params.allowed_token_ids) else -np.inf for i, x in enumerate(out)], np.float32)
    for word in bad_words:
        if list(word[:-1]) == list(output)[len(output) - len(word) + 1 :] and len(output) >= len(word) - 1:
            out[word[-1]] = -np.inf
    if len(output) < params.min_tokens:
        out[[*ends, *params.stop_token_ids]] = -np.inf
    for token, bias in (params.logit_bias or {}).items():
        out[token] += np.float32(bias)
    for token in set(prompt) | set(output):
        factor = np.float32(params.repetition_penalty)
        out[token] = out[token] / factor if out[token] > 0 else out[token] * factor
    for token, count in Counter(output).items():
        out[token] -= np.float32(params.frequency_penalty) * np.float32(count)
        out[token] -= np.float32(params.presence_penalty)
    return out


def survivors(logits, params):
    """(token id, weight in grains) of what min-p, top-k and top-p leave, the likeliest first."""
    best = max(logits)
    scaled = (np.asarray(logits, np.float32) - best) / np.float32(max(params.temperature, 1e-30))
    weight = {i: round(float(w) / GRAIN) for i, w in enumerate(np.exp(scaled)) if w > 0}
    left = [i for i in sorted(weight, key=lambda i: (-logits[i], i)) if weight[i] * GRAIN >= params.min_p]
    left = left[: params.top_k or None]
    goal, reached, kept = sum(weight[i] for i in left) * params.top_p, 0, []
    for i in left:
        if weight[i] == 0 or (params.top_p < 1 and reached >= goal):
            break
        kept.append((i, weight[i]))
        reached += weight[i]
    return kept


def draw(kept, uniform):
    """The first token whose running share of the weights exceeds ``uniform``."""
    target, running = uniform * sum(weight for _, weight in kept), 0
    for token, weight in kept:
        running += weight
        if running > target:
            return token
    return kept[-1][0]


def walk(logits, params):
    """``survivors`` in the order in which a draw meets them."""
    kept = survivors(logits, params)
    filtered = 0 < params.top_k < len(logits) or params.top_p < 1
    return kept if filtered else sorted(kept)


def choose(logits, params, uniform):
    """The token that a row of edited ``logits`` gets."""
    if params.temperature == 0:
        return max(range(len(logits)), key=lambda i: (logits[i], -i))
    return draw(walk(logits, params), uniform)
