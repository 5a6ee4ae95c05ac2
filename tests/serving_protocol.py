"""TensorFlow Serving's protocol over a SavedModel: Predict over gRPC and REST.

The model server's binary isn't a Python package; this does what its interface promises, for tests: newest version of a
folder, warm-up replayed before the first answer, its status codes, optional batching of waiting requests.
"""

import base64
import contextlib
import http.server
import json
import queue
import re
import threading
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc


class Refused(Exception):
    """An error of the protocol: a gRPC status code and its message."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code, self.message = code, message


class Servable:
    """The newest version beneath a folder, warmed up."""

    def __init__(self, name, folder):
        self.name, self.version = name, max(int(entry.name) for entry in Path(folder).iterdir())
        path = Path(folder) / str(self.version)
        self.signatures = tf.saved_model.load(str(path)).signatures
        self.replayed = 0
        for record in tf.data.TFRecordDataset(str(path / "assets.extra" / "tf_serving_warmup_requests")):
            self.predict(prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request)
            self.replayed += 1

    def predict(self, request):
        """PredictRequest → PredictResponse, or Refused."""
        signature = self.check(request.model_spec)
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        outputs = self.run(signature, inputs)
        response = predict_pb2.PredictResponse()
        response.model_spec.name, response.model_spec.version.value = self.name, self.version
        response.model_spec.signature_name = signature
        for key, value in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return response

    def check(self, spec):
        if spec.name != self.name or (spec.HasField("version") and spec.version.value != self.version):
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {spec.name}")
        signature = spec.signature_name or "serving_default"
        if signature not in self.signatures:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f'Serving signature name: "{signature}" not found')
        return signature

    def run(self, signature, inputs):
        wanted = set(self.signatures[signature].structured_input_signature[1])
        if set(inputs) != wanted:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"input size does not match signature: {sorted(wanted)}")
        try:
            return {key: value.numpy() for key, value in self.signatures[signature](**inputs).items()}
        except tf.errors.InvalidArgumentError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, error.message) from error


class Batching(Servable):
    """Puts the requests that wait into one batch along the first dimension, as --enable_batching does."""

    def __init__(self, name, folder, max_batch=8):
        self.waiting, self.sizes, self.max_batch = queue.Queue(), [], max_batch
        self.worker = None
        super().__init__(name, folder)
        self.worker = threading.Thread(target=self._work, daemon=True)
        self.worker.start()

    def run(self, signature, inputs):
        if self.worker is None:
            return super().run(signature, inputs)
        answer = futures.Future()
        self.waiting.put((signature, inputs, answer))
        return answer.result(timeout=120)

    def _work(self):
        while True:
            group = [self.waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(group) < self.max_batch:
                    group.append(self.waiting.get(timeout=0.02))
            self.sizes.append(len(group))
            try:
                merged = {key: tf.concat([one[1][key] for one in group], 0) for key in group[0][1]}
                outputs = super().run(group[0][0], merged)
            except Refused as error:
                for _, _, answer in group:
                    answer.set_exception(error)
                continue
            start = 0
            for _, inputs, answer in group:
                count = len(next(iter(inputs.values())))
                answer.set_result({key: value[start : start + count] for key, value in outputs.items()})
                start += count


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, servable):
        self.servable = servable

    def Predict(self, request, context):
        try:
            return self.servable.predict(request)
        except Refused as error:
            context.abort(error.code, error.message)


@contextlib.contextmanager
def grpc_server(servable, workers=16):
    """Yields HOST:PORT."""
    server = grpc.server(futures.ThreadPoolExecutor(workers), options=[("grpc.max_receive_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(servable), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def rest_server(servable):
    """Yields HOST:PORT; the row format of POST /v1/models/NAME[/versions/N]:predict."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def answer(self, status, content):
            body = json.dumps(content, indent=4).encode()  # as rapidjson's PrettyWriter does
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            match = re.fullmatch(r"/v1/models/(\w+)(?:/versions/(\d+))?:predict", self.path)
            if not match:
                return self.answer(400, {"error": f"Malformed request: POST {self.path}"})
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            spec = predict_pb2.PredictRequest().model_spec
            spec.name, spec.signature_name = match[1], body.get("signature_name", "")
            if match[2]:
                spec.version.value = int(match[2])
            try:
                signature = servable.check(spec)
                (key,) = servable.signatures[signature].structured_input_signature[1]
                values = [base64.b64decode(row["b64"]) for row in body["instances"]]
                outputs = servable.run(signature, {key: tf.constant(values)})
            except Refused as error:
                status = 404 if error.code == grpc.StatusCode.NOT_FOUND else 400
                return self.answer(status, {"error": error.message})
            return self.answer(200, {"predictions": _rows(outputs)})

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"localhost:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _rows(outputs):
    """Row format; strings go out as text, since their alias doesn't end in _bytes."""

    def plain(value):
        value = np.asarray(value)
        if value.dtype == object:
            return np.vectorize(lambda one: one.decode(), otypes=[object])(value).tolist()
        return value.tolist()

    count = len(next(iter(outputs.values())))
    return [{key: plain(value[row]) for key, value in outputs.items()} for row in range(count)]
