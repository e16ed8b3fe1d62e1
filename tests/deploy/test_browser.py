"""The exported file in a browser: onnxruntime-web in Chromium answers as ONNX Runtime does."""

import functools
import http.server
import json
import shutil
import subprocess
import threading

import numpy as np
import pytest
import torch

import distilens

PAGE = """<!doctype html><script src="node_modules/onnxruntime-web/dist/ort.wasm.min.js"></script>
<script>
ort.env.wasm.numThreads = 1;
async function answer(values, shape) {
  const session = await ort.InferenceSession.create("student.onnx", {executionProviders: ["wasm"]});
  const outputs = await session.run({images: new ort.Tensor("float32", Float32Array.from(values), shape)});
  return Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, Array.from(tensor.data)]));
}
</script>"""


class Server(http.server.SimpleHTTPRequestHandler):
    """The files of a folder, without a log."""

    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

    def log_message(self, *words):
        pass


@pytest.mark.slow
def test_chromium_answers_as_onnx_runtime(tmp_path):
    pytest.importorskip("onnxruntime")
    playwright = pytest.importorskip("playwright.sync_api")
    npm, chromium = shutil.which("npm"), shutil.which("chromium")
    if npm is None or chromium is None:
        pytest.skip("npm or chromium is not installed")
    install = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "onnxruntime-web"]
    if subprocess.run(install, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("npm cannot install here")
    from distilens.deploy.exporting import Plan, export_model
    from distilens.deploy.predict import open_model

    torch.manual_seed(0)
    model = distilens.build_model("resnet8", ["cat", "dog", "bird"], (32, 32)).eval()
    export_model(model, tmp_path, Plan())
    images = np.random.default_rng(0).random((4, 3, 32, 32), dtype=np.float32)
    opened = open_model(tmp_path / "student.onnx")
    expected = dict(zip(opened.about["outputs"], opened(images), strict=True))
    (tmp_path / "index.html").write_text(PAGE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--headless", "--disable-gpu"]
            )
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
            found = page.evaluate(f"answer({json.dumps(images.ravel().tolist())}, {list(images.shape)})")
            browser.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert set(found) == {"logits", "probabilities"}
    for name, values in expected.items():
        difference = np.abs(np.array(found[name]).reshape(values.shape) - values).max()
        print(f"largest difference of the {name}: {difference:.2g}, of values up to {np.abs(values).max():.3g}")
        assert difference < 1e-5
