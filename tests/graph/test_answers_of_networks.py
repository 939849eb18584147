"""The answer layers of networks that people use, written down by hand from their sources, are never edited."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unbackdoor.defences.data_free import CLP, LPP
from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

#: The channel of every layer whose weights are five times those of the others.
LOUD = 1
METHODS = (LPP(lower=-math.inf, upper=1.0, band=0, fc_weights=0, layers="all"), CLP(u=1.0))

#: Network -> its answer layers. "tv" are torchvision's, "tvq" its quantisable ones.
TRACED = {
    # Segmentation.
    "tv:fcn_resnet50": "classifier.4",
    "tv:fcn_resnet101": "classifier.4",
    "tv:deeplabv3_resnet50": "classifier.4",
    "tv:deeplabv3_resnet101": "classifier.4",
    "tv:deeplabv3_mobilenet_v3_large": "classifier.4",
    "tv:lraspp_mobilenet_v3_large": "classifier.low_classifier classifier.high_classifier",
    "tv:fcn_resnet50+aux_loss": "classifier.4 aux_classifier.4",
    "tv:deeplabv3_resnet50+aux_loss": "classifier.4 aux_classifier.4",
    # Quantisable.
    "tvq:resnet18": "fc",
    "tvq:resnet50": "fc",
    "tvq:resnext101_32x8d": "fc",
    "tvq:mobilenet_v2": "classifier.1",
    "tvq:mobilenet_v3_large": "classifier.3",
    "tvq:googlenet": "fc",
    "tvq:inception_v3": "fc",
    "tvq:shufflenet_v2_x0_5": "fc",
    "tvq:shufflenet_v2_x1_0": "fc",
    # Video.
    "tv:r3d_18": "fc",
    "tv:mc3_18": "fc",
    "tv:r2plus1d_18": "fc",
    "tv:s3d": "classifier.1",
    "tv:mvit_v1_b": "head.1",
    "tv:swin3d_t": "head",
    # Classification.
    "tv:squeezenet1_0": "classifier.1",
    "tv:squeezenet1_1": "classifier.1",
    "tv:convnext_tiny": "classifier.2",
    "tv:efficientnet_b0": "classifier.1",
    "tv:mobilenet_v3_small": "classifier.3",
    "timm:regnety_002": "head.fc",
    "tv:vit_b_16": "heads.head",
    "tv:maxvit_t": "classifier.5",
    "timm:resnet18": "fc",
    "timm:deit_tiny_distilled_patch16_224": "head head_dist",
    "timm:levit_128s": "head.linear head_dist.linear",
    "timm:efficientformer_l1": "head head_dist",
    "timm:crossvit_9_240": "head.0 head.1",
    "timm:vgg11_bn": "head.fc",
    "timm:mobilenetv3_small_100": "classifier",
    "timm:ghostnet_100": "classifier",
    "timm:inception_v4": "last_linear",
    "timm:resnest14d": "fc",
    "timm:skresnet18": "fc",
    "timm:convmixer_768_32": "head",
    "timm:xception41p": "head.fc",
    "timm:mobilevit_xxs": "head.fc",
    "timm:nf_regnet_b0": "head.fc",
    "timm:repvgg_a2": "head.fc",
    # Feature maps of every stage: all but the last are read by the next stage, and stay hidden.
    "timm:resnet18+features_only": "layer4.1.conv2",
    "timm:regnetx_002+features_only": "s4.b7.conv3.conv",
}

_RETINA = "head.classification_head.cls_logits head.regression_head.bbox_reg"
_RCNN = "rpn.head.cls_logits rpn.head.bbox_pred roi_heads.box_predictor.cls_score roi_heads.box_predictor.bbox_pred"
_SSD = " ".join(f"head.{kind}_head.module_list.{i}" for kind in ("classification", "regression") for i in range(6))

#: Detectors, which no tracer follows.
DETECTORS = {
    "ssdlite320_mobilenet_v3_large": " ".join(f"{path}.1" for path in _SSD.split()),
    "ssd300_vgg16": _SSD,
    "retinanet_resnet50_fpn": _RETINA,
    "retinanet_resnet50_fpn_v2": _RETINA,
    "fcos_resnet50_fpn": f"{_RETINA} head.regression_head.bbox_ctrness",
    "fasterrcnn_mobilenet_v3_large_320_fpn": _RCNN,
    "fasterrcnn_resnet50_fpn": _RCNN,
    "maskrcnn_resnet50_fpn": f"{_RCNN} roi_heads.mask_predictor.mask_fcn_logits",
    "keypointrcnn_resnet50_fpn": f"{_RCNN} roi_heads.keypoint_predictor.kps_score_lowres",
}

#: In every run; the others, and all detectors but one, are slow.
QUICK = {
    *("tv:deeplabv3_mobilenet_v3_large", "tv:lraspp_mobilenet_v3_large", "tvq:shufflenet_v2_x0_5", "tv:squeezenet1_1"),
    *("tv:mobilenet_v3_small", "timm:mobilenetv3_small_100", "timm:resnet18+features_only", "timm:resnest14d"),
}


def build(name: str) -> nn.Module:
    """A network of shapes without values."""
    source, _, rest = name.partition(":")
    arch, _, option = rest.partition("+")
    options = {option: True} if option else {}
    with torch.device("meta"):
        if source == "timm":
            return timm.create_model(arch, pretrained=False, **options).eval()
        if source == "tvq":
            return getattr(torchvision.models.quantization, arch)(weights=None, quantize=False, **options).eval()
        backbone = {"weights_backbone": None} if "weights_backbone" in _arguments(arch) else {}
        return torchvision.models.get_model(arch, weights=None, **backbone, **options).eval()


def _arguments(arch: str) -> tuple[str, ...]:
    builder = torchvision.models.get_model_builder(arch)
    return tuple(builder.__wrapped__.__annotations__)


def loud(model: nn.Module, graph: LayerGraph) -> dict[str, Tensor]:
    """Tensors in which every layer has one channel that stands out."""
    tensors = {name: torch.ones(tensor.shape) for name, tensor in model.state_dict().items()}
    for layer in graph.layers:
        weight = tensors[layer.weight]
        size = layer.out_channels // layer.blocks
        for block in range(layer.blocks):
            channel = block * size + LOUD % size
            if layer.transposed:
                weight[:, channel % weight.shape[1]] *= 5
            else:
                weight[channel] *= 5
    return tensors


def edited_layers(tensors: dict[str, Tensor], graph: LayerGraph) -> tuple[set[str], set[str]]:
    """Layers that some method edits, and those that every method calls not covered."""
    edited: set[str] = set()
    uncovered = {layer.path for layer in graph.layers}
    for method in METHODS:
        plan = method.plan(tensors, graph=graph)
        names = {edit.name.rpartition(".")[0] for edit in plan.edits}
        edited |= {layer.path for layer in graph.layers if not names.isdisjoint((layer.path, *layer.norms))}
        uncovered &= {remark.path for remark in plan.not_covered}
    return edited, uncovered


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TRACED]
)
def test_no_answer_of_a_network_that_is_traced_is_edited(name: str) -> None:
    model = build(name)
    answers = set(TRACED[name].split())
    graph = layer_graph(model)
    assert set(graph.outputs) == answers
    assert {layer.path for layer in graph.layers if layer.part == "answer"} == answers
    assert not any(layer.part == "unknown" for layer in graph.layers)
    edited, _ = edited_layers(loud(model, graph), graph)
    hidden = {layer.path for layer in graph.layers if layer.part == "hidden"}
    assert edited <= hidden
    assert len(edited) > len(hidden) / 2  # else the test would show nothing


@pytest.mark.slow
@pytest.mark.parametrize("name", list(DETECTORS))
def test_no_layer_without_a_norm_of_a_detector_is_edited(name: str) -> None:
    """No tracer follows it: it is not known which layers answer, and every one without a norm is said to be unread."""
    model = build(f"tv:{name}")
    answers = set(DETECTORS[name].split())
    graph = layer_graph(model)
    assert {layer.rule for layer in graph.layers} == {"names"}
    bare = {layer.path for layer in graph.layers if layer.norm is None}
    assert answers <= bare | {remark.path for remark in graph.uncovered}
    assert {layer.path for layer in graph.layers if layer.part == "unknown"} >= bare
    edited, uncovered = edited_layers(loud(model, graph), graph)
    assert not edited & (bare | answers)
    convolutions = {layer.path for layer in graph.layers if layer.kind != "Linear"}
    assert uncovered >= bare & convolutions


def test_the_networks_are_many() -> None:
    assert len(TRACED) + len(DETECTORS) >= 55
    assert set(TRACED) >= QUICK
