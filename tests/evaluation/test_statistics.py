"""Intervals and tests against SciPy, statsmodels, published examples and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from jax_mtlser.evaluation.metrics import ConfusionSums
from jax_mtlser.evaluation.statistics import (
    McNemarMethod,
    StatisticsError,
    cluster_confusions,
    confusion_scores,
    corrected_resampled_t,
    expected_maximum,
    holm,
    mcnemar,
    percentile_interval,
    resampled_scores,
    swap_p,
    wilson,
)

LABELS = ("angry", "happy", "sad")
_label = st.sampled_from(LABELS)
# Utterances: cluster, reference, and what two systems say.
_utterances = st.lists(st.tuples(st.sampled_from("abcde"), _label, _label, _label), min_size=2, max_size=40).filter(
    lambda rows: len({cluster for cluster, *_ in rows}) > 1
)


def confusions_of(rows):
    clusters, reference, first, second = zip(*rows, strict=True)
    return np.array([cluster_confusions(reference, said, clusters, LABELS) for said in (first, second)])


def right_or_wrong(hits, sizes):
    """Confusions [G, 2, 2] of clusters in which so many of so many utterances of one class are right."""
    counts = np.zeros((len(hits), 2, 2), np.int64)
    counts[:, 0, 0], counts[:, 0, 1] = hits, np.asarray(sizes) - hits
    return counts


# --- Scores ----------------------------------------------------------------------------------------------


@given(_utterances)
def test_scores_of_confusions_are_those_of_the_metrics(rows):
    _, reference, predicted, _ = zip(*rows, strict=True)
    sums = ConfusionSums.from_labels(reference, predicted, LABELS)
    wanted = [sums.accuracy, sums.unweighted_accuracy, sums.macro_f1]
    assert confusion_scores(confusions_of(rows)[0].sum(0)).tolist() == pytest.approx(wanted, abs=1e-12)


@given(_utterances)
def test_clusters_add_up_to_the_whole(rows):
    clusters = [cluster for cluster, *_ in rows]
    counts = confusions_of(rows)
    assert counts.shape == (2, len(set(clusters)), 3, 3)
    assert counts.sum() == 2 * len(rows)
    sizes = [clusters.count(name) for name in sorted(set(clusters))]
    assert counts.sum((2, 3)).tolist() == [sizes, sizes]


# --- Bootstrap -------------------------------------------------------------------------------------------


def test_the_bootstrap_of_utterances_agrees_with_scipy():
    random = np.random.default_rng(3)
    correct = random.random(200) < 0.7
    counts = right_or_wrong(correct.astype(int), np.ones(200, int))
    samples = resampled_scores(counts[None], draws=20_000)[:, 0, 0]
    theirs = stats.bootstrap(
        (correct,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(0), batch=1000
    )
    ours = percentile_interval(samples)
    # Accuracies of 200 come in steps of 0.005; the ends may be one step apart.
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.0051)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.0051)
    assert samples.std() == pytest.approx(theirs.standard_error, rel=0.03)


def test_the_bootstrap_of_clusters_has_the_closed_form_spread():
    """With clusters of one size, WA is a mean of cluster means: its bootstrap variance is their variance / G."""
    hits = np.random.default_rng(5).integers(0, 11, 30)
    samples = resampled_scores(right_or_wrong(hits, np.full(30, 10))[None], draws=40_000)[:, 0, 0]
    assert samples.mean() == pytest.approx(hits.mean() / 10, abs=0.002)
    assert samples.std() == pytest.approx((hits / 10).std() / np.sqrt(30), rel=0.02)


def test_drawing_whole_clusters_is_wider_where_utterances_hang_together():
    hits = np.array([10, 0] * 10)  # a speaker is right throughout or wrong throughout
    by_cluster = resampled_scores(right_or_wrong(hits, np.full(20, 10))[None])[:, 0, 0]
    single = np.repeat([1, 0], 100)
    by_utterance = resampled_scores(right_or_wrong(single, np.ones(200, int))[None])[:, 0, 0]
    assert by_cluster.std() == pytest.approx(np.sqrt(10) * by_utterance.std(), rel=0.05)


@settings(max_examples=30)
@given(_utterances, st.integers(0, 5))
def test_swapped_systems_swap_their_draws_exactly(rows, seed):
    one = confusions_of(rows)
    scores = resampled_scores(one, draws=200, seed=seed)
    swapped = resampled_scores(one[::-1].copy(), draws=200, seed=seed)
    np.testing.assert_array_equal(scores, swapped[:, ::-1])
    np.testing.assert_allclose(swap_p(*one, draws=200, seed=seed), swap_p(*one[::-1], draws=200, seed=seed), atol=1e-12)


@settings(max_examples=30)
@given(_utterances, st.randoms(use_true_random=False))
def test_the_order_of_utterances_does_not_matter(rows, random):
    shuffled = random.sample(rows, len(rows))
    one, other = confusions_of(rows), confusions_of(shuffled)
    np.testing.assert_array_equal(resampled_scores(one, draws=100), resampled_scores(other, draws=100))
    np.testing.assert_array_equal(swap_p(*one), swap_p(*other))


def test_chunks_do_not_change_the_draws(monkeypatch):
    random = np.random.default_rng(0)
    counts = random.integers(0, 4, (2, 30, 3, 3))
    whole = resampled_scores(counts, draws=500), swap_p(*counts, draws=500)
    monkeypatch.setattr("jax_mtlser.evaluation.statistics._CHUNK_CELLS", 300)
    pieces = resampled_scores(counts, draws=500), swap_p(*counts, draws=500)
    np.testing.assert_array_equal(whole[0], pieces[0])
    np.testing.assert_array_equal(whole[1], pieces[1])


def test_a_single_cluster_is_refused():
    with pytest.raises(StatisticsError, match="1 cluster cannot be resampled"):
        resampled_scores(right_or_wrong(np.array([3]), [4])[None])


def coverage(clusters, runs, seed):
    """Share of simulated test sets whose 95 % interval of WA holds the true WA; clusters differ in difficulty."""
    random = np.random.default_rng(seed)

    def accuracy(size):
        return 1 / (1 + np.exp(-1 - 0.4 * random.standard_normal(size)))

    truth, held = accuracy(1_000_000).mean(), 0
    for _ in range(runs):
        hits = random.binomial(40, accuracy(clusters))
        interval = percentile_interval(
            resampled_scores(right_or_wrong(hits, np.full(clusters, 40))[None], draws=600)[:, 0, 0]
        )
        held += interval.low <= truth <= interval.high
    return held / runs


def test_intervals_hold_the_truth_as_often_as_they_say_and_less_often_with_few_clusters():
    # Standard deviations of these shares: 0.011, 0.015, 0.019. The numbers stand in the warning about few clusters.
    assert coverage(50, 400, seed=1) == pytest.approx(0.94, abs=0.033)
    assert coverage(10, 400, seed=2) == pytest.approx(0.90, abs=0.045)
    assert coverage(5, 400, seed=3) == pytest.approx(0.83, abs=0.057)


def test_intervals_of_a_difference_hold_the_truth():
    """Two systems with a shared difficulty per cluster, the second 4 points better on average."""
    random = np.random.default_rng(11)
    held, runs = 0, 300
    for _ in range(runs):
        base = random.uniform(0.5, 0.8, 40)
        hits = random.binomial(25, base), random.binomial(25, base + 0.04)
        counts = np.array([right_or_wrong(h, np.full(40, 25)) for h in hits])
        samples = resampled_scores(counts, draws=600)[:, :, 0]
        interval = percentile_interval(samples[:, 1] - samples[:, 0])
        held += interval.low <= 0.04 <= interval.high
    assert held / runs == pytest.approx(0.95, abs=0.04)


# --- Swapping --------------------------------------------------------------------------------------------


def test_swapping_agrees_with_scipys_exact_permutation_test():
    random = np.random.default_rng(2)
    sizes = np.full(9, 20)
    hits = random.binomial(20, 0.6, 9), random.binomial(20, 0.75, 9)
    ours = swap_p(*(right_or_wrong(h, sizes) for h in hits))[0]
    theirs = stats.permutation_test(
        (hits[0], hits[1]), lambda x, y, axis: (y - x).mean(axis), permutation_type="samples", vectorized=True
    )
    assert ours == pytest.approx(theirs.pvalue)


def test_random_swaps_approach_all_of_them():
    random = np.random.default_rng(4)
    hits = random.binomial(30, 0.6, 12), random.binomial(30, 0.68, 12)
    one, other = (right_or_wrong(h, np.full(12, 30)) for h in hits)
    exact = swap_p(one, other, draws=4096)
    drawn = swap_p(one, other, draws=4095)  # one fewer than there are
    assert 0.01 < exact[0] < 0.5
    np.testing.assert_allclose(drawn, exact, atol=0.03)


def test_few_clusters_cannot_give_a_small_p_value():
    hits = np.zeros(5, int), np.full(5, 20)
    p = swap_p(*(right_or_wrong(h, np.full(5, 20)) for h in hits))
    assert p.tolist() == pytest.approx([2 / 32] * 3)


def test_swapping_gives_false_alarms_no_more_often_than_it_says():
    """Equal systems that are lucky in whole clusters, seven of them: a plain test over utterances would fire often."""
    random = np.random.default_rng(8)
    alarms = 0
    for _ in range(400):
        hits = (random.binomial(50, random.uniform(0.4, 0.9, 7)) for _ in range(2))
        alarms += swap_p(*(right_or_wrong(h, np.full(7, 50)) for h in hits))[0] <= 0.05
    assert 0.015 < alarms / 400 < 0.085


@given(_utterances)
@settings(max_examples=30)
def test_equal_systems_have_no_difference_and_p_is_one(rows):
    counts = confusions_of([(cluster, reference, said, said) for cluster, reference, said, _ in rows])
    samples = resampled_scores(counts, draws=100)
    np.testing.assert_array_equal(samples[:, 0], samples[:, 1])
    assert swap_p(*counts).tolist() == [1.0, 1.0, 1.0]
    assert swap_p(*counts, draws=2).tolist() == [1.0, 1.0, 1.0]


# --- McNemar ---------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_agrees_with_statsmodels(first, second):
    test = mcnemar(first, second)
    exact = first + second < 25
    assert test.method is (McNemarMethod.EXACT if exact else McNemarMethod.CHI_SQUARED)
    if first == second:
        assert test.p == 1  # statsmodels lets the correction overshoot here
        return
    theirs = statsmodels_mcnemar(np.array([[5, first], [second, 7]]), exact=exact, correction=True)
    assert test.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert mcnemar(second, first).p == pytest.approx(test.p)


def test_mcnemar_of_a_published_example():
    """Agresti, Categorical Data Analysis, table 10.1: approval ratings, 150 against 86; with correction 63² / 236."""
    assert mcnemar(150, 86).p == pytest.approx(stats.chi2.sf(63**2 / 236, 1))
    assert mcnemar(150, 86).p == pytest.approx(4.1e-5, rel=0.01)
    assert mcnemar(0, 0).p == 1


# --- Corrected resampled t -------------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30).filter(lambda d: np.std(d) > 1e-3))
def test_without_the_correction_it_is_scipys_paired_t_test(differences):
    test = corrected_resampled_t(differences, 0.0)
    theirs = stats.ttest_1samp(differences, 0)
    assert test.df == len(differences) - 1
    assert test.statistic == pytest.approx(theirs.statistic, rel=1e-9, abs=1e-12)
    assert test.p == pytest.approx(theirs.pvalue, rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30).filter(lambda d: np.std(d) > 1e-3), st.floats(0.01, 1))
def test_the_correction_shrinks_t_by_its_factor(differences, ratio):
    plain, corrected = corrected_resampled_t(differences, 0.0), corrected_resampled_t(differences, ratio)
    factor = np.sqrt(1 + len(differences) * ratio)
    assert corrected.statistic * factor == pytest.approx(plain.statistic, rel=1e-9, abs=1e-12)
    mirrored = corrected_resampled_t([-d for d in differences], ratio)
    assert mirrored.statistic == pytest.approx(-corrected.statistic)
    assert mirrored.p == pytest.approx(corrected.p)


def test_the_correction_keeps_the_level_that_a_plain_t_test_loses():
    """5 x 5 folds whose differences correlate by n_test / (n_test + n_train), as Nadeau and Bengio assume."""
    random, runs, correlation = np.random.default_rng(6), 1500, 0.2
    shared, own = random.standard_normal((runs, 1)), random.standard_normal((runs, 25))
    differences = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    corrected = np.mean([corrected_resampled_t(d, 0.25).p < 0.05 for d in differences])
    plain = np.mean([corrected_resampled_t(d, 0.0).p < 0.05 for d in differences])
    assert corrected == pytest.approx(0.05, abs=0.018)
    assert plain > 0.3


def test_equal_folds_and_too_few_of_them():
    same = corrected_resampled_t([0.0, 0.0, 0.0], 0.5)
    assert (same.statistic, same.p, same.df) == (0.0, 1.0, 2)
    constant = corrected_resampled_t([0.1, 0.1], 0.5)
    assert (constant.mean, constant.statistic, constant.p) == (0.1, None, None)
    with pytest.raises(StatisticsError, match="two folds at the least, not 1"):
        corrected_resampled_t([0.1], 0.5)


# --- Holm, best of n, Wilson -----------------------------------------------------------------------------


@settings(max_examples=15)  # a call of theirs takes a tenth of a second
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_agrees_with_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_the_expected_maximum_of_normal_numbers():
    # Exact: 0, 1/√π, 3/(2√π); then the tables of Harter (1961).
    wanted = {1: 0, 2: 1 / np.sqrt(np.pi), 3: 1.5 / np.sqrt(np.pi), 10: 1.53875, 18: 1.82003, 100: 2.50759}
    for n, value in wanted.items():
        assert expected_maximum(n) == pytest.approx(value, abs=1e-5)
        assert expected_maximum(n) <= np.sqrt(2 * np.log(n))
    with pytest.raises(StatisticsError, match="the best of 0"):
        expected_maximum(0)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_of_published_examples(hits, count, low, high):
    """Newcombe 1998, table I, method 3."""
    interval = wilson(hits, count)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_statsmodels(share):
    interval = wilson(*share)
    assert (interval.low, interval.high) == pytest.approx(proportion_confint(*share, method="wilson"), abs=1e-9)


def test_wilson_of_no_utterance_is_refused():
    with pytest.raises(StatisticsError, match="0 of 0 is no share"):
        wilson(0, 0)
