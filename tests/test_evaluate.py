"""Evaluation protocols: views against the papers' constructions, dense against crops, ensembles, what is counted."""

import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import scrambled
from narrow import narrow

from cnnjax.data.augment import Compose
from cnnjax.data.colour import Constant, SubtractMean
from cnnjax.data.images import Transform
from cnnjax.data.splits import Split
from cnnjax.errors import CnnjaxError
from cnnjax.models.alexnet import alexnet, alexnet_slim
from cnnjax.models.chain import Chain, chain
from cnnjax.models.googlenet import googlenet
from cnnjax.models.layers import Conv, Dense, Flatten, MaxPool, Norm
from cnnjax.models.lectures import smaller_vgg
from cnnjax.models.lenet import lenet5, lenet5_1998
from cnnjax.models.resnet import resnet
from cnnjax.models.surgery import fully_convolutional
from cnnjax.models.vgg import vgg
from cnnjax.train.evaluate import Member, Scores, evaluate, predict, score
from cnnjax.train.feed import Prepare
from cnnjax.train.losses import cross_entropy
from cnnjax.train.protocols import CENTRE, CORNERS, PROTOCOLS, Protocol, views

TINY = chain(
    conv1=Conv(5, 3, stride=2, norm=Norm()),
    pool1=MaxPool(2, stride=2),
    fc2=Dense(7, dropout=0.5),
    fc3=Dense(6, act=None),
)
FRAME = Prepare(Transform(mean=(0.5,), std=(0.25,)))
RANDOM = np.random.default_rng(3)


def pixels(n: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return RANDOM.integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def probabilities(net: Chain, variables: dict, images: np.ndarray) -> np.ndarray:
    """softmax(net(normalised images)), in NumPy from the logits on."""
    logits = np.asarray(net.apply(variables, (np.asarray(images, np.float32) / 255 - 0.5) / 0.25).logits, np.float64)
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


class Tiny(NamedTuple):
    net: Chain
    variables: dict

    def seen(self, images: np.ndarray) -> np.ndarray:
        return probabilities(self.net, self.variables, images)

    def member(self, protocol: Protocol = PROTOCOLS["whole"]) -> Member:
        return Member(self.net, self.variables, FRAME, protocol)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    """A network for crops of 12 pixels."""
    tiny = Tiny(TINY, scrambled(TINY, np.zeros((1, 12, 12, 3), np.float32), seed=2))
    assert 0 in tiny.seen(np.zeros((1, 12, 12, 3), np.uint8))[0].argsort()[1:]  # what pads a batch would be a hit
    return tiny


# --- views


def test_the_144_crops_are_those_of_the_paper():
    """Szegedy et al. 2014, section 7, loop by loop, of a 480×640 image."""
    by_hand = []
    for shorter, longer in ((256, 341), (288, 384), (320, 426), (352, 469)):
        for left in (0, (longer - shorter) // 2, longer - shorter):
            low = shorter - 224
            for top, right in ((0, 0), (0, low), (low, 0), (low, low), (low // 2, low // 2)):
                by_hand += [((shorter, longer), top, left + right, (224, 224), (224, 224), m) for m in (False, True)]
            by_hand += [((shorter, longer), 0, left, (shorter, shorter), (224, 224), m) for m in (False, True)]
    ours = views(PROTOCOLS["144"], (480, 640))
    assert len(ours) == len(set(ours)) == 144
    assert set(map(tuple, ours)) == set(by_hand)


def test_the_squares_of_an_upright_image_lie_above_each_other():
    wide, tall = (views(PROTOCOLS["144"], size) for size in ((300, 400), (400, 300)))
    turned = {view._replace(scaled=view.scaled[::-1], top=view.left, left=view.top) for view in tall}
    assert turned == set(wide)


def test_a_square_image_has_one_square():
    assert len(views(PROTOCOLS["144"], (256, 256))) == 48


@pytest.mark.parametrize(
    "name, crop, scales",
    [("144", 299, (342, 384, 427, 470)), ("centre", 299, (342,)), ("10crop", 112, (128,)), ("whole", 32, (None,))],
)
def test_another_crop_keeps_the_proportions(name, crop, scales):
    protocol = PROTOCOLS[name].for_crop(crop)
    assert (protocol.crop, protocol.scales) == (crop, scales)


def test_every_box_lies_inside_its_image():
    for protocol, size in itertools.product(PROTOCOLS.values(), [(256, 256), (300, 451), (500, 375), (224, 224)]):
        for view in views(protocol, size) if protocol.scales != (None,) else ():
            for start, length, side in zip((view.top, view.left), view.box, view.scaled, strict=True):
                assert 0 <= start <= side - length
            assert protocol.crops is None or view.seen == (224, 224)


@pytest.mark.parametrize("crops, shrunk", [(None, True), ((), False)])
def test_a_protocol_that_shows_nothing_sensible_is_refused(crops, shrunk):
    with pytest.raises(CnnjaxError, match="shows crops, or a whole image"):
        Protocol(source="", crops=crops, shrunk=shrunk)


def test_an_image_without_such_crops_is_refused():
    with pytest.raises(CnnjaxError, match="an image of 20×30 pixels has no crops of 24×24"):
        views(Protocol(source="", crop=24, scales=(None,)), (20, 30))


# --- averages


def test_ten_crops_are_the_mean_of_ten_crops_made_by_hand(tiny):
    images = pixels(3, 17, 20)
    square = images[:, :, 1:18]  # Krizhevsky's central square
    crops = [square[:, top : top + 12, left : left + 12] for top, left in ((0, 0), (0, 5), (5, 0), (5, 5), (2, 2))]
    crops += [crop[:, :, ::-1] for crop in crops]
    mean = np.mean([tiny.seen(crop) for crop in crops], axis=0)
    protocol = Protocol(source="", crop=12, scales=(None,), squares=(0.5,), crops=CORNERS + CENTRE, mirror=True)
    log_p = predict([tiny.member(protocol)], jnp.asarray(images))
    np.testing.assert_allclose(np.exp(log_p), mean, rtol=2e-5)
    assert not np.allclose(mean, tiny.seen(crops[4]), rtol=1e-2)


def test_144_crops_are_the_mean_of_their_views(tiny):
    """At the lab's size: the boxes of `views`, cut and resized by NumPy and Pillow."""
    from PIL import Image

    images, protocol = pixels(2, 22, 30), PROTOCOLS["144"].for_crop(12)
    # A smooth picture: Pillow rounds to whole levels
    images = np.stack([np.asarray(Image.fromarray(image[:4, :5]).resize((30, 22), 3)) for image in images])

    def resized(image, size):
        channels = [
            Image.fromarray(channel).resize(size[::-1], Image.Resampling.BILINEAR)
            for channel in np.moveaxis(image, -1, 0)
        ]
        return np.stack(channels, axis=-1)

    mean = 0
    for view in views(protocol, (22, 30)):
        scaled = [resized(image.astype(np.float32), view.scaled) for image in images]
        cut = [image[view.top : view.top + view.box[0], view.left : view.left + view.box[1]] for image in scaled]
        seen = np.stack([resized(image, view.seen) for image in cut])
        mean = mean + tiny.seen(seen[:, :, ::-1] if view.mirror else seen) / 144
    log_p = predict([tiny.member(protocol)], jnp.asarray(images))
    np.testing.assert_allclose(np.exp(log_p), mean, rtol=1e-3)


def test_an_ensemble_is_the_mean_of_its_members_probabilities(tiny):
    images = pixels(4, 12, 12)
    other = chain(conv1=Conv(4, 5), fc2=Dense(6, act=None))
    members = [
        tiny,
        Tiny(TINY, scrambled(TINY, np.zeros((1, 12, 12, 3), np.float32), seed=1)),  # another state
        Tiny(other, scrambled(other, np.zeros((1, 12, 12, 3), np.float32))),  # another network
    ]
    mean = np.mean([member.seen(images) for member in members], axis=0)
    log_p = predict([member.member() for member in members], jnp.asarray(images))
    np.testing.assert_allclose(np.exp(log_p), mean, rtol=2e-5)


def test_members_may_look_at_images_in_their_own_way(tiny):
    images = pixels(2, 16, 16)
    whole, crop = Tiny(*fully_convolutional(*tiny, (12, 12, 3))), Protocol(source="", crop=12, scales=(None,))
    mean = (whole.seen(images) + tiny.seen(images[:, 2:14, 2:14])) / 2
    log_p = predict([whole.member(), tiny.member(crop)], jnp.asarray(images))
    np.testing.assert_allclose(np.exp(log_p), mean, rtol=2e-5)


def test_what_training_subtracts_is_subtracted_before_the_crop(tiny):
    images, mean = pixels(2, 16, 16), RANDOM.uniform(0, 255, (16, 16, 3)).astype(np.float32)
    crop = Protocol(source="", crop=12, scales=(None,))
    member = Member(*tiny, Prepare(FRAME.transform, Compose((SubtractMean(Constant(mean)),))), crop)
    by_hand = tiny.seen((images - mean)[:, 2:14, 2:14])
    np.testing.assert_allclose(np.exp(predict([member], jnp.asarray(images))), by_hand, rtol=2e-5)


def test_the_order_of_classes_without_a_chance_is_kept():
    net = chain(fc1=Dense(9, act=None))
    variables = {"params": {"fc1": {"kernel": 1000 * jnp.eye(9), "bias": jnp.zeros(9)}}}
    image = np.arange(0, 90, 10, dtype=np.uint8).reshape(1, 3, 3, 1)
    split = Split(image, np.array([4], np.int32))
    protocol = Protocol(source="", scales=(None,), crops=None, mirror=False)
    scores = score([Member(net, variables, Prepare(Transform()), protocol)], split, batch=1)
    assert (scores.error, scores.error5) == (100, 0)


@pytest.mark.parametrize(
    "members, images, message",
    [
        (lambda tiny: [], (12, 12), "at least one member"),
        (lambda tiny: [tiny.member()], (16, 16), "cannot read images of 16×16: its weights are made for another size"),
    ],
)
def test_what_cannot_be_predicted_says_why(tiny, members, images, message):
    with pytest.raises(CnnjaxError, match=message):
        predict(members(tiny), jnp.asarray(pixels(1, *images)))


def test_members_with_other_classes_are_refused(tiny):
    other = chain(fc2=Dense(5, act=None))
    members = [tiny.member(), Tiny(other, scrambled(other, np.zeros((1, 12, 12, 3), np.float32))).member()]
    with pytest.raises(CnnjaxError, match=r"different numbers of classes: \[6, 5\]"):
        predict(members, jnp.asarray(pixels(1, 12, 12)))


# --- scores


@pytest.mark.parametrize("batch", [1, 8, 23, 50])
def test_the_confusion_matrix_is_numpys_and_a_ragged_last_batch_is_counted_once(tiny, batch):
    split = Split(pixels(23, 12, 12), RANDOM.integers(0, 5, 23).astype(np.int32))  # class 5 has no example
    p = tiny.seen(split.image)
    by_hand = np.zeros((6, 6), int)
    for label, taken in zip(split.label, p.argmax(axis=1), strict=True):
        by_hand[label, taken] += 1
    scores = score([tiny.member()], split, batch=batch)
    np.testing.assert_array_equal(scores.confusion, by_hand)
    assert scores.count == 23 and len(np.unique(by_hand)) > 2
    best = p.argsort(axis=1)[:, ::-1][:, :5]
    assert scores.error5 == pytest.approx(100 * np.mean([y not in b for y, b in zip(split.label, best, strict=True)]))
    assert scores.loss == pytest.approx(-np.log(p[np.arange(23), split.label]).mean(), rel=1e-5)
    with np.errstate(invalid="ignore"):
        accuracy = [100 * np.mean(p.argmax(axis=1)[split.label == c] == c) for c in range(5)]
    np.testing.assert_allclose(scores.class_accuracy, [*accuracy, np.nan])


def test_one_view_scores_as_training_does(tiny):
    split = Split(pixels(23, 12, 12), RANDOM.integers(0, 6, 23).astype(np.int32))
    in_training = evaluate(TINY, cross_entropy(), tiny.variables, split, prepare=FRAME, batch=8)
    assert score([tiny.member()], split, batch=8).metrics == pytest.approx(in_training)


def test_scores_count_what_they_hold():
    scores = Scores(np.array([[3, 1], [2, 4]]), 10, 0.5)
    assert (scores.count, scores.error, scores.error5) == (10, 30, 0)
    assert list(scores.class_accuracy) == [75, pytest.approx(200 / 3)]


def test_a_label_without_a_logit_is_refused(tiny):
    with pytest.raises(CnnjaxError, match="label 6 has no logit; the networks have 6"):
        score([tiny.member()], Split(pixels(2, 12, 12), np.array([0, 6], np.int32)), batch=2)


# --- dense evaluation

DENSE = {
    "vgg_A": (narrow(vgg("A")), (64, 64, 3)),  # fc6 reads 2×2
    "vgg_D_bn, oblong": (narrow(vgg("D", norm=Norm())), (32, 96, 3)),
    "alexnet": (narrow(alexnet()), (131, 131, 3)),  # 3×3
    "alexnet_slim": (narrow(alexnet_slim()), (224, 224, 3)),
    "lenet5": (lenet5(), (32, 32, 1)),
    "smaller_vgg, normalised behind fc1": (narrow(smaller_vgg()), (48, 48, 3)),
    "flatten": (
        chain(conv1=Conv(3, 3), flatten=Flatten(), fc2=Dense(5, norm=Norm()), fc3=Dense(4, act=None)),
        (8, 10, 2),
    ),
}


@pytest.mark.parametrize("net, shape", DENSE.values(), ids=DENSE)
def test_dense_evaluation_of_one_crop_is_that_crops(net, shape):
    variables = scrambled(net, np.zeros((1, *shape), np.float32))
    images = RANDOM.standard_normal((2, *shape), np.float32)
    whole, weights = fully_convolutional(net, variables, shape)
    logits = jax.jit(lambda n, v, x: n.apply(v, x).logits, static_argnums=0)
    ours, crop = logits(whole, weights, images), logits(net, variables, images)
    assert float(jnp.abs(crop).max()) > 0.1
    chex.assert_trees_all_close(ours, crop, rtol=1e-4, atol=1e-4 * float(jnp.abs(crop).max()))
    larger = (shape[0] + 32, shape[1] + 64, shape[2])
    chex.assert_shape(
        jax.eval_shape(lambda v, x: whole.apply(v, x).logits, weights, jnp.zeros((1, *larger))),
        crop.shape[:0] + (1, crop.shape[1]),
    )


def test_the_class_map_of_a_larger_image_holds_the_crops_at_every_stride(tiny):
    """Without padding, dense evaluation is exactly the mean of the logits of all crops, 4 pixels apart."""
    images = RANDOM.standard_normal((2, 20, 24, 3), np.float32)
    crops = [images[:, i : i + 12, j : j + 12] for i in (0, 4, 8) for j in (0, 4, 8, 12)]
    mean = np.mean([tiny.net.apply(tiny.variables, crop).logits for crop in crops], axis=0)
    net, variables = fully_convolutional(*tiny, (12, 12, 3))
    chex.assert_trees_all_close(net.apply(variables, images).logits, mean, rtol=1e-4, atol=1e-5)


def test_multiscale_averages_the_posteriors_of_all_scales_and_mirror_images(tiny):
    whole = Tiny(*fully_convolutional(*tiny, (12, 12, 3)))
    images, protocol = pixels(2, 16, 20), Protocol(source="", scales=(16, 24), crops=None, mirror=True)
    larger = np.asarray(jax.image.resize(images.astype(np.float32), (2, 24, 30, 3), "linear"))
    mean = np.mean([whole.seen(x) for x in (images, images[:, :, ::-1], larger, larger[:, :, ::-1])], axis=0)
    np.testing.assert_allclose(np.exp(predict([whole.member(protocol)], jnp.asarray(images))), mean, rtol=1e-4)


@pytest.mark.parametrize("net", [narrow(resnet(18)), narrow(googlenet(aux=False))], ids=["resnet18", "googlenet"])
def test_networks_that_average_their_features_take_any_size_as_they_are(net):
    variables = scrambled(net, np.zeros((1, 64, 64, 3), np.float32))
    assert fully_convolutional(net, variables, (64, 64, 3))[0] == net


def test_a_row_without_a_convolutional_form_is_named():
    net = lenet5_1998()
    variables = scrambled(net, np.zeros((1, 32, 32, 1), np.float32))
    with pytest.raises(CnnjaxError, match="layer 'output', a RBF, has no convolutional form"):
        fully_convolutional(net, variables, (32, 32, 1))


def test_weights_for_another_size_are_refused(tiny):
    with pytest.raises(CnnjaxError, match=r"not made for images of shape \(16, 16, 3\)"):
        fully_convolutional(*tiny, (16, 16, 3))
