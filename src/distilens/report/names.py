"""The names of explainers on a page, as in their papers."""

EXPLAINERS = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
    "cam": "CAM",
    "eigencam": "Eigen-CAM",
    "attention": "attention",
    "channel": "channel",
    "gradient": "gradient",
    "smoothgrad": "SmoothGrad",
    "ig": "Integrated Gradients",
    "expected_gradients": "Expected Gradients",
    "occlusion": "occlusion",
    "rise": "RISE",
    "captum": "Captum",
    "random": "random noise",
    "centre": "centred blob",
}


def plain_name(label: str) -> str:
    """The name of an explainer, from the label in its file names.

    >>> [plain_name(label) for label in ("gradcam", "gradcam-tap-layer1", "mine")]
    ['Grad-CAM', 'Grad-CAM, tap layer1', 'mine']
    """
    name, _, options = label.partition("-")
    if name not in EXPLAINERS:
        return label
    return f"{EXPLAINERS[name]}, {options.replace('-', ' ')}" if options else EXPLAINERS[name]
