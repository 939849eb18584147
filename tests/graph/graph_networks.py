"""Networks of torchvision and timm, and how the layer graph of each compares with the truth."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from graph_truth import Truth, watch
from torch import Tensor, nn

from unbackdoor.findings.layers import LayerGraph
from unbackdoor.graph import layer_graph
from unbackdoor.models import ARCHITECTURES, parse_arch

OWN = tuple(ARCHITECTURES)

TORCHVISION = (
    *("alexnet", "convnext_tiny", "deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "densenet121", "densenet201"),
    *("efficientnet_b0", "efficientnet_v2_s", "fcn_resnet50", "googlenet", "inception_v3", "lraspp_mobilenet_v3_large"),
    *("maxvit_t", "mc3_18", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "mvit_v2_s"),
    *("r2plus1d_18", "r3d_18", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet101", "resnet50"),
    *("resnext50_32x4d", "s3d", "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1", "swin3d_t", "swin_t"),
    *("swin_v2_t", "vgg16", "vgg16_bn", "vit_b_16", "wide_resnet50_2"),
)

TIMM = (
    *("bat_resnext26ts", "beit_base_patch16_224", "botnet26t_256", "cait_xs24_384", "coat_lite_tiny", "coatnet_0_224"),
    *("convit_tiny", "convmixer_768_32", "convnext_atto", "crossvit_9_240", "cs3sedarknet_x", "cspresnet50"),
    *("deit_base_distilled_patch16_224", "densenet121", "dla34", "dm_nfnet_f0", "dpn48b", "edgenext_small_rw"),
    *("efficientformer_l1", "efficientformerv2_s1", "efficientnet_b0", "efficientvit_b0", "efficientvit_m0"),
    *("ese_vovnet19b_dw", "fasternet_t0", "fastvit_s12", "fbnetv3_b", "focalnet_small_srf", "gcvit_tiny", "gernet_s"),
    *("ghostnet_100", "ghostnetv2_100", "halonet26t", "hardcorenas_a", "hgnet_small", "hiera_tiny_224", "hrnet_w18"),
    *("inception_next_atto", "inception_resnet_v2", "inception_v4", "lambda_resnet26t", "lcnet_050", "legacy_senet154"),
    *("legacy_xception", "levit_128s", "levit_conv_128s", "mambaout_femto", "maxvit_nano_rw_256", "mixer_b16_224"),
    *("mixnet_s", "mnasnet_100", "mobilenet_edgetpu_v2_xs", "mobilenetv1_100", "mobilenetv2_100"),
    *("mobilenetv3_small_100", "mobilenetv4_conv_small", "mobileone_s0", "mobilevit_xxs", "mobilevitv2_050"),
    *("mvitv2_tiny", "nasnetalarge", "nest_tiny", "nextvit_small", "nf_regnet_b0", "nf_resnet50", "pit_ti_224"),
    *("pnasnet5large", "poolformer_s12", "poolformerv2_s12", "pvt_v2_b0", "regnetx_002", "regnety_002", "regnetz_b16"),
    *("repghostnet_050", "repvgg_a2", "repvit_m1", "res2net50_26w_4s", "res2next50", "resmlp_12_224", "resnest14d"),
    *("resnet50", "resnetaa50", "resnetblur50", "resnetrs50", "resnetv2_50", "resnetv2_50x1_bit", "rexnet_100"),
    *("rexnetr_200", "selecsls42b", "semnasnet_100", "sequencer2d_s", "seresnet50", "skresnet18", "spnasnet_100"),
    *("starnet_s1", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "tf_efficientnet_b0"),
    *("tf_efficientnetv2_b0", "tf_mixnet_s", "tf_mobilenetv3_small_100", "tiny_vit_5m_224", "tinynet_e"),
    *("tnt_s_patch16_224", "tresnet_m", "twins_pcpvt_small", "vgg11_bn", "visformer_tiny", "vit_tiny_patch16_224"),
    *("volo_d1_224", "wide_resnet50_2", "xception41", "xception41p", "xcit_tiny_12_p16_224"),
)

NETWORKS = (*OWN, *(f"torchvision:{name}" for name in TORCHVISION), *(f"timm:{name}" for name in TIMM))

#: Here (N, L, C) results of a Linear are flattened to (N * L, C) before a BatchNorm1d: a pair in all but identity.
MERGING = ("timm:levit_128s",)

_VIDEO = ("mc3_18", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t")
_SIDES = {"inception_v3": 299}


def build(arch: str) -> tuple[nn.Module, Tensor]:
    """The network and a batch for it, in eval mode, on the meta device: shapes without values."""
    model = parse_arch(arch).build(device="meta").to("meta")
    name = arch.rpartition(":")[2]
    config = getattr(model, "pretrained_cfg", {}).get("input_size")
    side = 32 if arch in OWN else _SIDES.get(name, 224)
    shape = (3, 16, side, side) if name in _VIDEO else config or (3, side, side)
    return model, torch.empty(2, *shape, device="meta")


@dataclass
class Row:
    """How a network's graph compares with the truth.

    Attributes:
        called: BatchNorms that were called.
        fed: norm -> layer, where a readable layer alone feeds it directly.
        wrong, missed, merged, extra: norms: paired with another layer; not paired; paired behind a flattening of a
            Linear's positions; paired though no layer alone feeds them.
        silent: layers that ran and are neither in the graph nor among what it does not cover.
        computed: layers whose weight is computed before use, and that the graph scores all the same.
        uncovered: how many layers the graph says that it does not cover.
        rule: the tracer.
        milliseconds: of processor time for `layer_graph`, the best of the repeats.
    """

    arch: str
    called: set[str]
    fed: dict[str, str]
    wrong: set[str] = field(default_factory=set)
    missed: set[str] = field(default_factory=set)
    merged: set[str] = field(default_factory=set)
    extra: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    computed: set[str] = field(default_factory=set)
    uncovered: int = 0
    rule: str = ""
    milliseconds: float = 0.0

    @property
    def norms(self) -> int:
        """How many BatchNorms were called."""
        return len(self.called)


def measure(arch: str) -> Row:
    """Build a network, watch it run, read its graph, compare."""
    model, batch = build(arch)
    return compare(arch, model, watch(model, batch))


def compare(arch: str, model: nn.Module, truth: Truth, repeats: int = 1) -> Row:
    """The graph of a network against what was seen when it ran."""
    graph, seconds = _timed(lambda: layer_graph(model))
    for _ in range(repeats - 1):
        seconds = min(seconds, _timed(lambda: layer_graph(model))[1])
    fed = {norm: layer for norm, layer in truth.fed.items() if layer not in truth.computed}
    found = {norm: layer for layer, norm in graph.pairs.items()}
    beyond = found.keys() - fed.keys()
    scored = {layer.path for layer in graph.layers if layer.parametrization is None}
    return Row(
        arch,
        truth.norms,
        fed,
        wrong={norm for norm, layer in fed.items() if found.get(norm, layer) != layer},
        missed=fed.keys() - found.keys(),
        merged=beyond if arch in MERGING else set(),
        extra=set() if arch in MERGING else beyond,
        silent=truth.layers - {layer.path for layer in graph.layers} - {remark.path for remark in graph.uncovered},
        computed=truth.computed & scored,
        uncovered=len(graph.uncovered),
        rule=" ".join(sorted({layer.rule for layer in graph.layers})),
        milliseconds=1000 * seconds,
    )


def _timed(call: Callable[[], LayerGraph]) -> tuple[LayerGraph, float]:
    start = time.process_time()
    result = call()
    return result, time.process_time() - start
