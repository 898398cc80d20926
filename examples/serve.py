"""Serve an exported student over HTTP with FastAPI and ONNX Runtime, without torch.

    pip install 'gendd[serve]'
    python examples/serve.py runs/mine/export/student-mean.onnx --port 8000
    curl -F file=@image.jpg http://localhost:8000/predict

Several files in one request (-F file=@a.jpg -F file=@b.jpg) form a batch; requests may be concurrent.
"""

import argparse
from pathlib import Path

import numpy as np
from fastapi import FastAPI, HTTPException, UploadFile
from predict_onnx import Classifier

MOST_FILES = 64
MOST_BYTES = 32 * 1024**2
BATCH = 16


def create_app(model: str | Path, top: int = 5) -> FastAPI:
    """Create the application for an exported student; it returns the ``top`` classes of each image."""
    classifier = Classifier(model)
    app = FastAPI(title="gendd student")

    @app.get("/healthz")
    def healthz() -> dict[str, object]:
        return {"status": "ok", "readout": classifier.readout, "classes": len(classifier.class_names)}

    # not async: each request runs in its own thread, which the session supports
    @app.post("/predict")
    def predict(file: list[UploadFile]) -> dict[str, object]:
        if len(file) > MOST_FILES:
            raise HTTPException(413, f"expected at most {MOST_FILES} files, got {len(file)}")
        images = np.stack([_prepared(classifier, each) for each in file])
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        probabilities = np.concatenate([classifier.probabilities(part) for part in parts])
        found = [classifier.best(row, top) for row in probabilities]
        return {
            "predictions": [
                {
                    "file": each.filename,
                    "classes": [name for name, _ in best],
                    "probabilities": [value for _, value in best],
                }
                for each, best in zip(file, found, strict=True)
            ]
        }

    return app


def _prepared(classifier: Classifier, file: UploadFile) -> np.ndarray:
    data = file.file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise HTTPException(413, f"{file.filename}: expected at most {MOST_BYTES} bytes, got more")
    try:
        return classifier.prepare(data)
    except ValueError as error:
        raise HTTPException(400, f"{file.filename}: {error}") from error


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the exported .onnx file")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port (default: 8000)")
    parser.add_argument("--top", type=int, default=5, help="classes per image (default: 5)")
    given = parser.parse_args()
    try:
        app = create_app(given.model, given.top)
    except ValueError as error:
        parser.exit(2, f"{error}\n")
    uvicorn.run(app, host=given.host, port=given.port)


if __name__ == "__main__":
    main()
