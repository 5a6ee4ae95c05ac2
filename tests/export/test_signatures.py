"""Behind TensorFlow Serving's protocol: answers over gRPC and REST are the detector's; refusals name the image."""

import http.server
import json
import math
import threading
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from serving_protocol import Batching, Servable, grpc_server, rest_server
from small_detectors import clutter, encode, small_detector
from tensorflow_serving.config import model_server_config_pb2

from retinanet_tf.cli.serving_client import OUTPUTS, detect
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.export.saved_model import export
from retinanet_tf.inference.results import to_results

LABELS = LabelMap([1, 18, 44], ["person", "dog", "bottle"])
SERVING = Path(__file__).parents[2] / "serving"
SIZES = [(60, 80), (80, 60), (50, 100), (64, 64)]


def picture(number):
    """Clutter; every number has another content and most another size."""
    return clutter(number, *SIZES[number % 4])


@pytest.fixture(scope="module")
def detector():
    return small_detector(LABELS)


@pytest.fixture(scope="module")
def folder(detector, tmp_path_factory):
    return export(detector, tmp_path_factory.mktemp("serving") / "retinanet").parent


@pytest.fixture(scope="module")
def servable(folder):
    return Servable("retinanet", folder)


@pytest.fixture(scope="module", params=["grpc", "rest"])
def server(request, servable):
    with (grpc_server if request.param == "grpc" else rest_server)(servable) as address:
        yield address, request.param == "rest"


def expected(detector, images):
    """The detector's own results per image, in COCO's format."""
    answer = {name: value.numpy() for name, value in detector(images).items()}
    counts = answer.pop("num_detections")
    rows = [{name: value[row, :count] for name, value in answer.items()} for row, count in enumerate(counts)]
    return [to_results(detections, 0, LABELS.ids) for detections in rows]


def check(answer, wanted):
    assert [len(rows) for rows in answer] == [len(rows) for rows in wanted] and sum(map(len, wanted)) > len(wanted)
    for row, other in zip(sum(answer, []), sum(wanted, []), strict=True):
        assert row["category_id"] == other["category_id"]
        assert row["category"] == LABELS.names[LABELS.to_index(other["category_id"])]
        assert row["score"] == pytest.approx(other["score"], abs=1e-5)
        np.testing.assert_allclose(row["bbox"], other["bbox"], atol=2e-3)


@pytest.mark.slow
def test_client_answers_as_the_detector(detector, server):
    address, rest = server
    images = [picture(number) for number in range(6)]
    check(detect([encode(image) for image in images], address, rest=rest), expected(detector, images))


GOOD, CUT = encode(picture(0)), encode(picture(0), "JPEG")[:-200]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([GOOD, CUT], {}, r"images\[1\] is damaged: its pixels can not be decoded\.$"),
        ([GOOD], {"model": "other"}, "answers (NOT_FOUND|404): Servable not found for request: other$"),
        ([GOOD], {"version": 5}, "answers (NOT_FOUND|404): Servable not found"),
        ([b"text"], {}, r"images\[0\]"),
    ],
)
def test_refusals_are_one_sentence(server, images, options, message):
    address, rest = server
    with pytest.raises(InputError, match=message):
        detect(images, address, rest=rest, **options)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"predictions": [[0.1, 0.9]]}, "doesn't answer as TensorFlow Serving does"),
        ({"predictions": [{"scores": [1]}]}, "isn't a detector of this package: it has no 'detection_boxes'"),
        ({"answer": 1}, "it has no 'predictions'"),
        ([1], "doesn't answer as TensorFlow Serving does"),
        ({"predictions": []}, "doesn't answer as TensorFlow Serving does"),
        ({"predictions": [{**dict.fromkeys(OUTPUTS, []), "num_detections": 1}]}, "doesn't answer as TensorFlow"),
        ({"predictions": [{**dict.fromkeys(OUTPUTS, []), "num_detections": math.inf}]}, "doesn't answer as TensorFlow"),
        ({"predictions": [{**dict.fromkeys(OUTPUTS, {}), "num_detections": 1}]}, "doesn't answer as TensorFlow"),
        ({"predictions": [{**dict.fromkeys(OUTPUTS, []), "num_detections": 0}] * 2}, "more images than the 1 that"),
    ],
)
def test_other_servers_are_refused_in_a_sentence(answer, sentence):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("localhost", 0), Other) as server:
        threading.Thread(target=server.handle_request).start()
        with pytest.raises(InputError, match=sentence):
            detect([encode(clutter(1))], f"localhost:{server.server_port}", rest=True)


@pytest.mark.parametrize(("body", "length"), [(b"<html>\n</html>\n", 16), (b'{"error": "Out', 99), (b"[1]", 3)])
def test_an_error_that_is_not_tensorflow_servings_is_its_status(body, length):
    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(502)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("localhost", 0), Proxy) as server:
        threading.Thread(target=server.handle_request).start()
        with pytest.raises(InputError, match="answers 502: Bad Gateway$"):
            detect([encode(clutter(1))], f"localhost:{server.server_port}", rest=True)


@pytest.mark.parametrize("rest", [False, True])
def test_a_missing_server_is_named(rest):
    with pytest.raises(InputError, match="no image is given"):
        detect([], "localhost:1", rest=rest, timeout=5)
    with pytest.raises(InputError, match="localhost:1 "):
        detect([GOOD], "localhost:1", rest=rest, timeout=5)


@pytest.mark.once
def test_sixteen_clients_each_get_their_own_answer(detector, folder):
    """Mixed sizes, requests of 1 to 3 images, merged into batches by the server."""
    servable = Batching("retinanet", folder)
    requests = [[picture(10 * client + k) for k in range(1 + client % 3)] for client in range(16)]
    wanted = [expected(detector, images) for images in requests]
    with grpc_server(servable) as address, futures.ThreadPoolExecutor(16) as clients:

        def ask(images):
            return [detect([encode(image) for image in images], address) for _ in range(3)]

        for answers, rows in zip(clients.map(ask, requests), wanted, strict=True):
            for answer in answers:
                check(answer, rows)
    assert max(servable.sizes) > 1, "requests were batched, or the test shows nothing"


@pytest.mark.once
def test_client_command(servable, detector, tmp_path, forked):
    """Lines for people, JSON for programs; a file that isn't there is a sentence and status 1."""
    (tmp_path / "a.png").write_bytes(encode(picture(2)))
    wanted = expected(detector, [picture(2)])

    def run(*arguments):
        return forked.run("client", arguments)

    with rest_server(servable) as address:
        output = tmp_path / "found.json"
        status, printed = run(f"--image={tmp_path / 'a.png'}", f"--server={address}", "--rest", f"--output={output}")
        assert status == 0, printed
        rows = json.loads(output.read_text())
        check([rows], wanted)
        assert {row["image_id"] for row in rows} == {str(tmp_path / "a.png")}
        assert f"{len(rows)} detections" in printed and rows[0]["category"] in printed
        status, printed = run("--image=missing.jpg", f"--server={address}", "--rest")
    assert status == 1 and "Traceback" not in printed
    assert "missing.jpg can't be read" in printed.splitlines()[-1]


@pytest.mark.slow
def test_warm_up_is_replayed_before_the_first_answer(servable):
    assert servable.replayed == 2


def test_models_config_is_the_servers():
    """models.config parses as the server's own message and names the client's default model."""
    config = text_format.Parse((SERVING / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.model_platform) == ("retinanet", "tensorflow")
