"""The small networks that the lectures work through.

Departures
- The slides leave out a flatten row and, in the TensorFlow network, the activation of the hidden layer; what frameworks
  do there is what stands here. The mangled diagram of the first deck cannot be made consistent; its two readings with
  SAME convolutions are `same_padding_diagram(256)` and `(32)`.
"""

from cnnjax.models.chain import Chain, chain
from cnnjax.models.layers import BatchNorm, Conv, Dense, Dropout, Flatten, MaxPool, Norm
from cnnjax.models.surgery import with_init


def linear(classes: int = 10) -> Chain:
    """A linear classifier on the pixels."""
    return chain(output=Dense(classes, act=None, weight_init="glorot"))


def mlp(*hidden: int, classes: int = 10, act: str = "sigmoid") -> Chain:
    """A perceptron with layers of `hidden` units; the lectures' is `mlp(500, 500)` on 784 pixels, with sigmoids."""
    layers = {f"fc{i}": Dense(units, act=act) for i, units in enumerate(hidden, start=1)}
    return with_init(chain(layers, output=Dense(classes, act=None)), "glorot")


def tf_convnet(classes: int = 10) -> Chain:
    """The TensorFlow `conv_net` of the slides, images [28, 28, 1]; `tf.layers` pads nothing by default."""
    return chain(
        conv1=Conv(32, 5),                                      # 24×24
        pool1=MaxPool(2, stride=2),                             # 12×12
        conv2=Conv(64, 3),                                      # 10×10
        pool2=MaxPool(2, stride=2),                             # 5×5
        flatten=Flatten(),
        fc1=Dense(1024, act=None, dropout=0.25),
        out=Dense(classes, act=None),
    )  # fmt: skip


def keras_cifar(classes: int = 10) -> Chain:
    """The Keras CIFAR-10 network of the slides, images [32, 32, 3]."""
    net = chain(
        conv1=Conv(32, 3, pad=1),                               # 32×32
        conv2=Conv(32, 3),                                      # 30×30
        pool1=MaxPool(2, stride=2),                             # 15×15
        drop1=Dropout(0.25),
        conv3=Conv(64, 3, pad=1),                               # 15×15
        conv4=Conv(64, 3),                                      # 13×13
        pool2=MaxPool(2, stride=2),                             # 6×6
        drop2=Dropout(0.25),
        fc1=Dense(512, dropout=0.5),
        fc2=Dense(classes, act=None),
    )  # fmt: skip
    return with_init(net, "glorot")


def kaggle_lenet(classes: int = 10) -> Chain:
    """The "LeNet-inspired" network of the slides' Kaggle example, images [28, 28, 1]."""
    return chain(
        conv1=Conv(12, 5),                                      # 24×24
        pool1=MaxPool(2, stride=2),                             # 12×12
        conv2=Conv(25, 5),                                      # 8×8
        pool2=MaxPool(2, stride=2),                             # 4×4
        fc1=Dense(180, dropout=0.5),
        fc2=Dense(100, dropout=0.5),
        fc3=Dense(classes, act=None),
    )  # fmt: skip


def ng_39(classes: int = 1) -> Chain:
    """The worked example 39 → 37 → 17 → 7 (A. Ng's), images [39, 39, 3], with 1,960 features before the output."""
    return chain(
        conv1=Conv(10, 3),                                      # 37×37
        conv2=Conv(20, 5, stride=2),                            # 17×17
        conv3=Conv(40, 5, stride=2),                            # 7×7
        output=Dense(classes, act=None),
    )  # fmt: skip


def smaller_vgg(classes: int = 5) -> Chain:
    """SmallerVGGNet, images [96, 96, 3]: convolution, ReLU, normalisation, in this order; the layout is
    pyimagesearch's.
    """
    keras = Norm(epsilon=1e-3, momentum=0.99)
    net = chain(
        conv1=Conv(32, 3, pad=1), norm1=BatchNorm(keras),
        pool1=MaxPool(3, stride=3), drop1=Dropout(0.25),        # 32×32
        conv2=Conv(64, 3, pad=1), norm2=BatchNorm(keras),
        conv3=Conv(64, 3, pad=1), norm3=BatchNorm(keras),
        pool2=MaxPool(2, stride=2), drop2=Dropout(0.25),        # 16×16
        conv4=Conv(128, 3, pad=1), norm4=BatchNorm(keras),
        conv5=Conv(128, 3, pad=1), norm5=BatchNorm(keras),
        pool3=MaxPool(2, stride=2), drop3=Dropout(0.25),        # 8×8
        fc1=Dense(1024), norm6=BatchNorm(keras), drop4=Dropout(0.5),
        fc2=Dense(classes, act=None),
    )  # fmt: skip
    return with_init(net, "glorot")


def same_padding_diagram(maps: int = 256, classes: int = 50) -> Chain:
    """A consistent reading of the first deck's diagram, images [256, 256, 3]; `maps` of the second convolution."""
    return chain(
        conv1=Conv(32, 5, pad=2),
        pool1=MaxPool(2, stride=2),                             # 128×128
        conv2=Conv(maps, 5, pad=2),
        pool2=MaxPool(2, stride=2),                             # 64×64
        fc1=Dense(500),
        fc2=Dense(classes, act=None),
    )  # fmt: skip


def vgg16_transfer_head(classes: int = 2) -> Chain:
    """The classifier that the lectures put on VGG-16's pool5, [7, 7, 512], for Dogs vs. Cats."""
    return chain(flatten=Flatten(), fc1=Dense(256, dropout=0.5), output=Dense(classes, act=None))
