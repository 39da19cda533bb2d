"""The measures of `jattn.analysis` written out in loops over examples, queries and keys of one head, in float64."""

import math


def rows(maps, counted):
    """(i, {j: A_ij / Σ}) of each query of each example that counts."""
    for weights, valid in zip(maps, counted, strict=True):
        for i in range(len(weights)):
            row = {j: float(weights[i][j]) for j in range(len(weights[i])) if valid[i] and valid[j]}
            total = sum(row.values())
            if total:
                yield i, {j: one / total for j, one in row.items()}


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def entropy(maps, counted):
    return mean(-sum(p * math.log(p) for p in row.values() if p) for _, row in rows(maps, counted))


def confidence(maps, counted):
    return mean(max(row.values()) for _, row in rows(maps, counted))


def mean_distance(maps, counted):
    return mean(sum(p * abs(i - j) for j, p in row.items()) for i, row in rows(maps, counted))


def sink_score(maps, counted):
    return mean(row.get(0, 0) for _, row in rows(maps, counted))


def mass_on(maps, counted, kinds):
    found = []
    for weights, valid, kind in zip(maps, counted, kinds, strict=True):
        found += [sum(p for j, p in row.items() if kind[j]) for _, row in rows([weights], [valid])]
    return mean(found)


def offset_histogram(maps, counted, length):
    found = dict.fromkeys(range(1 - length, length), 0.0)
    for i, row in rows(maps, counted):
        for j, p in row.items():
            found[j - i] += p
    total = sum(found.values())
    return [one / total for _, one in sorted(found.items())]


def head_distance(left, right, counted):
    def plog(p):
        return p * math.log(p) if p else 0.0

    found = []
    for (_, p), (_, q) in zip(rows(left, counted), rows(right, counted), strict=True):
        middle = -sum(plog((p[j] + q[j]) / 2) for j in p)
        found.append(middle + sum(plog(p[j]) + plog(q[j]) for j in p) / 2)
    return math.sqrt(max(mean(found), 0))


def is_pair(name, i, j, tokens, delimiters):
    return {
        "previous": j == i - 1,
        "next": j == i + 1,
        "current": j == i,
        "first": j == 0,
        "duplicate": j < i and tokens[i] == tokens[j],
        "induction": 0 < j <= i and tokens[j - 1] == tokens[i],
        "delimiter": j != i and delimiters[j],
    }[name]


def pattern_share(name, maps, tokens, delimiters):
    on = total = 0.0
    for weights, words, ends in zip(maps, tokens, delimiters, strict=True):
        for i in range(len(weights)):
            pairs = [is_pair(name, i, j, words, ends) for j in range(len(words))]
            if any(pairs):
                on += sum(float(weights[i][j]) for j in range(len(words)) if pairs[j])
                total += sum(map(float, weights[i]))
    return on / total
