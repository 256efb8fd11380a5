"""Figures of a trained hierarchy: each against what it must be for images, codes and edits made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage as ndi

from data_prep.brain_anatomy import CSF, VENTRICLE, WHITE
from data_prep.brain_phantom import prepare
from medvae_lite import edits
from medvae_lite import hierarchy_scores as scores
from medvae_lite.brains import load
from medvae_lite.gaussian import Gaussian
from medvae_lite.hierarchy_scores import Edited, clusters, detector, evaluate, infer, mixed, predictability, synthesised
from medvae_lite.hvae import HVAE, Latent

AREA = 5.5**2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load(prepare(tmp_path_factory.mktemp("brains") / "ms", subjects=20, slices=3, size=32))


@pytest.fixture(scope="module")
def rows(data):
    return data.rows("test")


@pytest.fixture(scope="module")
def atrophy(tmp_path_factory):
    return load(prepare(tmp_path_factory.mktemp("brains") / "ad", subjects=20, slices=3, size=32, disease="ad"))


def build(prior="nvmp", **settings):
    """A small model with random heads, so that its layers matter."""
    torch.manual_seed(0)
    made = HVAE(size=(32, 32), prior=prior, widths=(4, 6, 8, 8, 8), cycle=0, **({"components": 3} | settings)).eval()
    with torch.no_grad():
        for head in [*made.p_heads, *made.q_heads]:
            torch.nn.init.normal_(head[-1].weight, std=0.2)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def figures(data):
    return evaluate(build("nvmp+", lesion_weight=1.0), data, draws=5)


# Many images


@pytest.mark.parametrize("prior", ["vae", "nvmp"])
def test_images_in_batches_give_what_they_give_in_one_go(data, prior):
    made, x = build(prior, bidirectional=prior != "vae"), data.image(np.arange(11))
    image, way = made.infer(x)
    for size in (4, 11, 64):
        found, found_way = infer(made, x, size=size)
        torch.testing.assert_close(found, image, rtol=1e-4, atol=1e-5)
        for one, other in zip(found_way, way, strict=True):
            torch.testing.assert_close(one.z, other.z, rtol=1e-4, atol=1e-5)
            for name in ("prior", "posterior"):
                torch.testing.assert_close(getattr(one, name).mu, getattr(other, name).mu, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(getattr(one, name).logvar, getattr(other, name).logvar, rtol=1e-4, atol=1e-5)


def test_chosen_rows_of_a_way_are_those_images_way(model, data):
    which = np.array([7, 2])
    few = scores.chosen(infer(model, data.image(np.arange(9)))[1], which)
    for one, other in zip(few, infer(model, data.image(which))[1], strict=True):
        torch.testing.assert_close(one.z, other.z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.residual, other.residual, rtol=1e-3, atol=1e-4)


# All of them


def test_every_figure_is_a_number_but_for_what_has_no_lesions_to_count(figures):
    unknown = {name for name, value in figures.items() if not math.isfinite(value)}
    empty = {"invalid_prior"} if not figures["lesions_prior"] else set()
    assert unknown <= {"missed_3", "missed_5", "missed_10", "missed_more"} | empty
    for name in (
        "psnr", "ssim_brain", "fd_prior", "share_4", "clusters_used", "nmi_height", "r2_2_alpha10", "r2_0_ventricle", "r2_4_atrophy",
        "missed_all", "lesion_dice", "disparity_residual", "mixed_anatomy", "conditional_place_sd",
    ):  # fmt: skip
        assert math.isfinite(figures[name]), name


def test_the_same_model_gives_the_same_figures_twice(figures, data):
    again = evaluate(build("nvmp+", lesion_weight=1.0), data, draws=5)
    assert list(again) == list(figures)
    np.testing.assert_array_equal(list(again.values()), list(figures.values()))


def test_figures_without_lesions_say_nothing_of_lesions(atrophy):
    found = evaluate(build("nvae"), atrophy, draws=2)
    lesions = ("missed", "invalid", "lesion", "mixed", "conditional", "sensitivity", "disparity")
    assert not [name for name in found if name.startswith(lesions) or "alpha" in name or name.endswith("lesion")]
    assert {f"r2_{layer}_{target}" for layer in range(5) for target in ("atrophy", "ventricle")} <= set(found)
    assert "clusters_used" not in found, "no mixture, no clusters"
    assert np.isfinite(list(found.values())).all()


def test_shares_add_up_and_pixels_are_counted(figures):
    assert sum(figures[f"share_{layer}"] for layer in range(5)) == pytest.approx(1) and figures["pixels"] == 32 * 32


# Reconstruction and likelihood


def test_reconstruction_figures_are_recomputed(figures, data, rows):
    made = build("nvmp+", lesion_weight=1.0)
    x, x_hat = data.image(rows).double(), made.infer(data.image(rows))[0].double()
    assert figures["half_sse"] == pytest.approx(float(0.5 * (x - x_hat).square().sum() / len(x)), rel=1e-5)
    grey = [((u - data.grey_range[0]) / (data.grey_range[1] - data.grey_range[0])).clip(0, 1) for u in (x, x_hat)]
    error = (grey[0] - grey[1]).square().mean((1, 2, 3))
    assert figures["psnr"] == pytest.approx(float((-10 * error.log10()).mean()), rel=1e-5)


@pytest.mark.parametrize("prior", ["vae", "nvae", "nvmp", "nvmp+"])
def test_the_bundle_of_likelihood_figures_adds_up(data, rows, prior):
    made, x = build(prior), data.image(rows)
    found = scores._bounds(made, x, x, 3, 4)
    assert found["neg_elbo"] == pytest.approx(found["recon_nll"] + found["kl"])
    assert found["kl"] == pytest.approx(sum(found[f"kl_{layer}"] for layer in range(5)))
    terms = made.elbo(data.split("test").batch(), scores.step(3, made))
    assert found["neg_elbo"] == pytest.approx(float(terms.total().mean()), rel=1e-5)
    assert found["recon_nll"] == pytest.approx(float(terms.nll.mean()), rel=1e-5)


def test_the_importance_weighted_bound_is_tighter(data, rows):
    made, x = build("nvmp"), data.image(rows[:4])
    found = [scores._bounds(made, x, x, seed, 10) for seed in range(8)]
    gap = np.array([one["neg_elbo"] - one["nll_iw"] for one in found])
    assert gap.mean() > 4 * gap.std() / math.sqrt(len(gap))


def test_distances_are_nothing_for_perfect_and_larger_for_noisy_reconstructions(model, data, rows):
    x = data.image(rows)
    perfect = scores._distances(model, data, x, x, 0)
    noisy = scores._distances(model, data, x, x + 0.3 * torch.randn_like(x), 0)
    assert perfect["fd_recon"] == pytest.approx(0, abs=1e-6)
    assert perfect["fd_recon"] < perfect["fd_floor"] < noisy["fd_recon"]
    assert perfect["fd_floor"] == noisy["fd_floor"] and perfect["fd_prior"] == noisy["fd_prior"]


# Lesions


def test_lesions_are_kept_by_the_image_itself_and_missed_by_the_healthy_twin(model, data, rows):
    x = data.image(rows)
    kept = scores._lesions(model, data, rows, x, x, 0)
    gone = scores._lesions(model, data, rows, x, data.twins[torch.from_numpy(rows)].float(), 0)
    # Not all: fluid in the ring makes healthy white matter stand out too.
    assert kept["missed_all"] == 0 and gone["missed_all"] > 0.8
    assert kept["lesions_real"] > 10 and kept["invalid_real"] < 0.2 and "lesion_dice" not in kept


def test_dice_of_a_lesion_head_that_knows_is_one(data, rows, monkeypatch):
    made, x = build(lesion_weight=1.0), data.image(rows)
    truth = data.lesion[torch.from_numpy(rows)]
    for logits, dice in ((40 * (truth - 0.495), 1.0), (torch.full_like(truth, -9.0), 0.0), (torch.full_like(truth, 9.0), None)):
        monkeypatch.setattr(made, "lesion_logits", lambda way, logits=logits: logits)
        found = scores._lesions(made, data, rows, x, x, 0)["lesion_dice"]
        share = float((truth >= 0.5).float().mean())
        assert found == pytest.approx(2 * share / (1 + share) if dice is None else dice)


def test_the_finder_sees_lesions_and_tells_fluid_from_tissue(data):
    find, train = detector(data), torch.from_numpy(data.rows("train"))
    x, tissue, truth = data.images[train][:, 0].float().numpy(), data.labels[train][:, 0].numpy(), data.lesion[train][:, 0].numpy() > 0.5
    found = find.lesions(x)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.65
    twins = find.lesions(data.twins[train][:, 0].float().numpy())
    assert twins.sum() < 0.05 * found.sum()
    assert find.dark == pytest.approx((np.median(x[np.isin(tissue, (1, 2))]) + np.median(x[tissue == 4])) / 2)
    assert (x[tissue == VENTRICLE] < find.dark).mean() > 0.8 > 0.1 > (x[tissue == WHITE] < find.dark).mean()


def test_without_tissue_labels_fluid_is_told_by_quantiles(data):
    """Real people have a brain mask alone."""
    labels = data.labels.clone()
    labels[:, 0] = (labels[:, 0] > 0).to(torch.uint8)
    train, full = torch.from_numpy(data.rows("train")), detector(data)
    find = detector(replace(data, labels=labels))
    x, tissue = data.images[train][:, 0].float().numpy(), data.labels[train][:, 0].numpy()
    assert find.bright == full.bright
    assert np.median(x[tissue == VENTRICLE]) < find.dark < np.median(x[tissue == WHITE])


# Edits


def painted(data, rows, place):
    """Healthy twins with lesions painted where `place` says; one edit a person."""
    twin, tissue = scores.people(data, rows)
    # Nothing healthy is bright enough for a lesion.
    twin, where = np.minimum(twin, 1.5), place(tissue)
    images = np.where(where, 3.0, twin)[:, None].astype(np.float32)
    return Edited(images, twin, tissue, data, where.sum((1, 2)).astype(float)), where


def spots(label):
    """Every seventh pixel of a tissue."""

    def place(tissue):
        number = np.cumsum(tissue == label, axis=2) + np.cumsum((tissue == label).sum(2), axis=1)[..., None]
        return (tissue == label) & (number % 7 == 0)

    return place


def test_lesions_painted_into_white_matter_are_valid_and_follow(data, rows):
    edited, where = painted(data, rows, spots(WHITE))
    found = edited.scores()
    np.testing.assert_allclose(edited.area[:, 0], where.sum((1, 2)) * AREA)
    assert found["invalid"] == 0 and found["area"] == pytest.approx(where.sum((1, 2)).mean() * AREA)
    assert found["follows"] == pytest.approx(1) and "area_sd" not in found


@pytest.mark.parametrize("label", [VENTRICLE, CSF, 0])
def test_lesions_painted_into_fluid_or_outside_are_invalid(data, rows, label):
    edited, where = painted(data, rows, spots(label))
    assert where.any() and edited.scores()["invalid"] == 1


def test_half_in_half_out_is_half_invalid(data, rows):
    pair = [painted(data, rows, spots(label)) for label in (WHITE, VENTRICLE)]
    both, _ = painted(data, rows, lambda tissue: spots(WHITE)(tissue) | spots(VENTRICLE)(tissue))
    inside, outside = (where.sum() for _, where in pair)
    assert both.invalid() == pytest.approx(outside / (inside + outside))


def test_anatomy_is_that_of_the_twin_away_from_lesions(data, rows):
    """Another person's lesions on a person's healthy brain: the anatomy is their own; with another's brain it is not."""
    twin, tissue = scores.people(data, rows)
    other = scores.partners(data, rows)
    share = data.lesion[torch.from_numpy(rows)][:, 0].numpy()[other]
    wanted = data.lesion_mm3[rows][other][:, None]
    ideal = Edited((twin * (1 - share) + 3 * share)[:, None], twin, tissue, data, wanted).scores()
    # Windows of 11 pixels still see lesions that lie three pixels away.
    assert ideal["anatomy"] > 0.95 and ideal["invalid"] < 0.05 and ideal["follows"] > 0.9
    swapped = Edited((twin[other] * (1 - share) + 3 * share)[:, None], twin, tissue, data, wanted).scores()
    assert swapped["anatomy"] < ideal["anatomy"] - 0.2
    twin = np.minimum(twin, 1.5)
    assert Edited(twin[:, None], twin, tissue, data).scores() == {"anatomy": pytest.approx(1), "invalid": 0, "area": 0}


def test_anatomy_is_read_in_the_brain_more_than_two_pixels_from_any_lesion(data, rows, monkeypatch):
    edited, where = painted(data, rows, lambda tissue: spots(WHITE)(tissue) & (np.arange(32) < 12))
    masks = []
    real = scores.fidelity.ssim
    monkeypatch.setattr(scores.fidelity, "ssim", lambda x, y, *, mask: masks.append(mask) or real(x, y, mask=mask))
    edited.anatomy()
    expected = [(t > 0) & (ndi.distance_transform_cdt(~w, "chessboard") > 2) for t, w in zip(edited.tissue, where)]
    np.testing.assert_array_equal(masks[0][:, 0], expected)


def test_darker_white_matter_is_another_anatomy(data, rows):
    twin, tissue = scores.people(data, rows)
    assert Edited(np.where(tissue == WHITE, twin - 0.5, twin)[:, None], twin, tissue, data).anatomy() < 0.95


def test_spread_of_several_edits_worked_by_hand(data, rows):
    """Two draws with four pixels each: in the same place, in different ones, and one of them twice as large."""
    twin, tissue = scores.people(data, rows[:1])
    base = np.full_like(twin, -0.5)
    cases = {"same": ((4, 4, 2), (4, 4, 2)), "apart": ((4, 4, 2), (20, 20, 2)), "larger": ((4, 4, 2), (4, 4, 4))}
    found = {}
    for name, places in cases.items():
        images = np.repeat(base[:, None], 2, 1)
        for draw, (row, column, width) in enumerate(places):
            images[0, draw, row : row + 2, column : column + width] = 9
        found[name] = Edited(images, twin, tissue, data).scores()
    assert (found["same"]["area_sd"], found["same"]["place_sd"], found["same"]["area"]) == (0, 0, pytest.approx(4 * AREA))
    assert (found["apart"]["area_sd"], found["apart"]["place_sd"]) == (0, pytest.approx(8 * 0.5 * AREA))
    assert (found["larger"]["area_sd"], found["larger"]["place_sd"]) == (pytest.approx(2 * AREA), pytest.approx(4 * 0.5 * AREA))
    assert "follows" not in found["same"]


def testpartners_are_the_next_persons_slices_at_the_nearest_height(data):
    for which in (data.rows("test"), data.rows("test")[[0, 1, 3, 5, 6, 9, 11]]):
        table = data.slices.iloc[which]
        who, z = table["subject"].to_numpy(), table["z_mm"].to_numpy()
        order = list(dict.fromkeys(who))
        for position, partner in enumerate(scores.partners(data, which)):
            assert who[partner] == order[(order.index(who[position]) + 1) % len(order)] != who[position]
            assert abs(z[partner] - z[position]) == min(abs(z[who == who[partner]] - z[position]))


def test_everybodys_partner_is_another_when_all_heights_are_there(data, rows):
    found = scores.partners(data, rows)
    assert sorted(found) == list(range(len(rows)))
    z = data.slices["z_mm"].to_numpy()[rows]
    np.testing.assert_array_equal(z[found], z)


def test_mixing_takes_only_the_lesion_layer_from_the_partner(model, data, rows, monkeypatch):
    image, way = infer(model, data.image(rows))
    edited = mixed(model, data, rows, way)
    other = scores.partners(data, rows)
    np.testing.assert_array_equal(edited.wanted[:, 0], data.lesion_mm3[rows][other])
    expected = edits.mix(model, way, scores.chosen(way, other), [2])
    np.testing.assert_allclose(edited.images, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(edited.images - image.numpy()).max() > 1e-3
    monkeypatch.setattr(scores, "partners", lambda data, rows: np.arange(len(rows)))
    np.testing.assert_allclose(mixed(model, data, rows, way).images, image, rtol=1e-3, atol=1e-3)


def test_new_lesions_are_drawn_anew_and_alike_for_one_seed(model, data, rows):
    _, way = infer(model, data.image(rows))
    first, again, other = (synthesised(model, data, rows, way, seed=seed, draws=3).images for seed in (0, 0, 1))
    assert first.shape == (len(rows), 3, 32, 32) and np.array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first[:, 0] - first[:, 1]).max() > 1e-3


def test_another_layer_may_be_exchanged_or_drawn(model, data, rows):
    way = infer(model, data.image(rows))[1]
    for edit in (mixed, synthesised):
        own, same, other = (edit(model, data, rows, way, layer=layer).images for layer in (None, model.lesion_layer, 3))
        np.testing.assert_array_equal(own, same)
        assert np.abs(own - other).max() > 1e-4


def test_sensitivity_is_the_slope_of_the_lesion_area(model, data, rows, monkeypatch):
    """Layer 2 paints 20 pixels a unit, layer 3 takes 5 away, by one way of keeping the others."""

    def scaled(model, way, layer, factor, *, mode):
        pixels = {2: 20 * factor, 3: 10 - 5 * factor}.get(layer, 7) if mode == "residual" else 4
        image = torch.full((len(way[0].z), 1, 32 * 32), -0.5)
        image[:, :, : int(pixels)] = 9
        image[:, :, int(pixels)] = 9 if pixels % 1 else -0.5
        return image.unflatten(2, (32, 32))

    monkeypatch.setattr(edits, "scale", scaled)
    _, way = infer(model, data.image(rows))
    found = scores._sensitivity(model, data, way)
    unit = AREA / data.lesion_mm3[data.rows("train")].std()
    assert found["sensitivity_residual_2"] == pytest.approx(20 * unit)
    assert found["sensitivity_residual_3"] == pytest.approx(-5 * unit)
    assert found["sensitivity_residual_0"] == 0 and found["disparity_residual"] == pytest.approx(0.8)
    assert found["disparity_absolute"] == 0


# Clusters


def grouped(data, rows, owners, count):
    """Which cluster, and what is said of them, where images lie at components far apart."""
    made = build(components=count)
    centres = 10 * torch.eye(count, made.dims[0])
    made.top_prior = lambda: Gaussian(centres, torch.zeros_like(centres))
    z = centres[torch.tensor(owners)] + 0.1 * torch.randn(len(owners), made.dims[0])
    nothing = Gaussian(torch.zeros_like(z), torch.zeros_like(z))
    return clusters(made, data, rows, [Latent(z, nothing, nothing)])


def test_clusters_that_are_heights_say_so(data, rows):
    owners = data.slices["slice"].to_numpy()[rows]
    r, found = grouped(data, rows, owners.tolist(), 5)
    np.testing.assert_array_equal(r.argmax(1), owners)
    np.testing.assert_allclose(r.sum(1), 1, rtol=1e-5)
    assert found["clusters_used"] == pytest.approx(3) and found["nmi_height"] == pytest.approx(1)
    assert found["certainty"] == pytest.approx(1, abs=1e-6)


def test_clusters_that_are_people_say_nothing_of_heights(data, rows):
    who = data.slices["subject"].iloc[rows]
    owners = [list(who.unique()).index(one) for one in who]
    _, found = grouped(data, rows, owners, 4)
    assert found["clusters_used"] == pytest.approx(4) and found["nmi_height"] == pytest.approx(0, abs=1e-9)


def test_usage_worked_by_hand(data, rows):
    """Nine and three of twelve: exp of the entropy of (3/4, 1/4); all in one: 1."""
    _, found = grouped(data, rows, [0] * 9 + [1] * 3, 4)
    assert found["clusters_used"] == pytest.approx(4 / 3**0.75)
    _, alone = grouped(data, rows, [2] * 12, 4)
    assert alone["clusters_used"] == 1 and alone["nmi_lesion"] == 0


def test_images_between_two_components_are_uncertain(data, rows):
    made = build(components=2)
    centres = torch.eye(2, made.dims[0])
    made.top_prior = lambda: Gaussian(centres, torch.zeros_like(centres))
    z = torch.zeros(len(rows), made.dims[0])
    r, found = clusters(made, data, rows, [Latent(z, Gaussian(z, z), Gaussian(z, z))])
    np.testing.assert_allclose(r, 0.5) and found["certainty"] == pytest.approx(0.5)


def test_without_lesions_there_is_no_agreement_with_them(atrophy):
    _, found = grouped(atrophy, atrophy.rows("test"), [0, 1] * 6, 2)
    assert "nmi_lesion" not in found and {"nmi_height", "nmi_ventricle"} <= set(found)


# Predictability


def told(made, data, rows, targets):
    """Codes that are noise but for the layers in `targets`: there every place holds the target, standardised on training slices."""
    train = data.rows("train")
    way = []
    for layer, dim in enumerate(made.dims):
        z = torch.randn(len(rows), dim)
        if layer in targets:
            y = targets[layer]
            z = torch.from_numpy((y[rows] - y[train].mean()) / y[train].std()).float()[:, None].repeat(1, dim)
        way.append(Latent(z, Gaussian(z, z), Gaussian(z, z)))
    return way


def test_a_layer_that_holds_the_target_predicts_it_and_the_others_do_not(data, rows, monkeypatch):
    made, train = build(), data.rows("train")
    ventricle = data.slices["ventricle_mm2"].to_numpy(float)
    atrophy = data.people.set_index("subject").loc[data.slices["subject"], "atrophy"].to_numpy(float)
    targets = {0: data.lesion_mm3, 1: ventricle, 2: atrophy}
    seen, way = told(made, data, train, targets), told(made, data, rows, targets)
    monkeypatch.setattr(scores, "infer", lambda model, x: (None, seen))
    found = predictability(made, data, way)
    for layer, name in enumerate(("lesion", "ventricle", "atrophy")):
        assert found[f"r2_{layer}_{name}"] > 0.99, name
        assert found[f"r2_3_{name}"] < 0.4 and found[f"r2_4_{name}"] < 0.4
    # The covariance is the target's spread; what the weight takes off it is lost, squared, in training.
    sd = data.lesion_mm3[train].std()
    for alpha in (1.0, 10.0):
        assert found[f"r2_0_alpha{alpha:g}"] == pytest.approx(1 - (alpha / sd) ** 2, abs=0.02)
    assert found["r2_0_alpha1"] >= found["r2_0_alpha10"] >= found["r2_0_alpha100"]


def test_weights_above_the_covariance_leave_only_the_training_mean(data, rows, monkeypatch):
    made, train = build(), data.rows("train")
    seen, way = told(made, data, train, {}), told(made, data, rows, {})
    for one in seen + way:
        one.z.mul_(1e-3)
    monkeypatch.setattr(scores, "infer", lambda model, x: (None, seen))
    found = predictability(made, data, way)
    y, mean = data.lesion_mm3[rows], data.lesion_mm3[train].mean()
    expected = 1 - ((y - mean) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert [found[f"r2_{layer}_alpha{alpha}"] for layer in range(5) for alpha in (10, 100)] == pytest.approx([expected] * 10)


def test_a_target_nobody_varies_in_is_left_out(data, rows, model):
    same = replace(data, people=data.people.assign(atrophy=0.25), slices=data.slices.drop(columns="ventricle_mm2"))
    found = predictability(model, same, infer(model, data.image(rows))[1])
    assert {name.split("_")[2] for name in found} == {"lesion", "alpha1", "alpha10", "alpha100"}
