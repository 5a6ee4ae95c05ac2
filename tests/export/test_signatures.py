"""Behind TensorFlow Serving's protocol: gRPC and REST answers equal to the detector's, many clients, hostile ones."""

import http.client
import io
import json
import re
import resource
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from serving_protocol import Batching, Servable, grpc_server, rest_server
from small_detectors import small_detector
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from retinanet_tf.cli.serving_client import OUTPUTS, detect
from retinanet_tf.data.sources.labels import LabelMap
from retinanet_tf.errors import InputError
from retinanet_tf.export.saved_model import export

LABELS = LabelMap([1, 18, 44], ["person", "dog", "bottle"])
SERVING = Path(__file__).parents[2] / "serving"
SAMPLES = Path(__file__).parents[1] / "data" / "samples"


def encode(pixels, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def picture(number):
    """A cluttered picture; every number has another content and most another size."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
    return np.asarray(small.resize([(80, 60), (60, 80), (100, 50), (64, 64)][number % 4]))


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
    """What the detector itself says, in the client's form."""
    answer = {name: value.numpy() for name, value in detector(images).items()}
    return [
        [
            {
                "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
                "score": float(answer["scores"][row, place]),
                "category_id": LABELS.ids[answer["labels"][row, place]],
                "category": LABELS.names[answer["labels"][row, place]],
            }
            for place, box in enumerate(answer["boxes"][row, : answer["num_detections"][row]])
        ]
        for row in range(len(images))
    ]


def check(found, wanted):
    assert [len(one) for one in found] == [len(one) for one in wanted] and sum(map(len, wanted)) > len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a["category_id"], a["category"]) == (b["category_id"], b["category"])
            assert a["score"] == pytest.approx(b["score"], abs=1e-5)
            np.testing.assert_allclose(np.array(a["bbox"]) / 100, np.array(b["bbox"]) / 100, atol=1e-5)


def test_client_answers_as_the_detector(detector, server):
    address, rest = server
    images = [picture(number) for number in range(6)]
    found = detect([encode(image) for image in images], address, rest=rest)
    check(found, expected(detector, images))


def test_refusals_are_sentences(server):
    address, rest = server
    good = encode(picture(0))
    cut = encode(picture(0), "JPEG")[:-200]
    with pytest.raises(InputError, match=r"images\[1\] is damaged: its pixels can not be decoded\.$"):
        detect([good, cut], address, rest=rest)
    with pytest.raises(InputError, match="NOT_FOUND|404"):
        detect([good], address, rest=rest, model="other")
    with pytest.raises(InputError, match="NOT_FOUND|404"):
        detect([good], address, rest=rest, version=5)
    with pytest.raises(InputError, match=r"images\[0\] is no image"):
        detect([b"text"], address, rest=rest)


@pytest.mark.parametrize("rest", [False, True])
def test_no_server_is_a_sentence(rest):
    with pytest.raises(InputError, match="localhost:1 "):
        detect([encode(picture(0))], "localhost:1", rest=rest, timeout=5)


def test_sixteen_clients_each_get_their_own_answer(detector, folder):
    """Mixed sizes, requests of 1 to 3 images, merged into batches by the server."""
    servable = Batching("retinanet", folder)
    requests = [[picture(10 * client + k) for k in range(1 + client % 3)] for client in range(16)]
    wanted = [expected(detector, images) for images in requests]
    with grpc_server(servable) as address, futures.ThreadPoolExecutor(16) as clients:

        def ask(images):
            return [detect([encode(image) for image in images], address) for _ in range(3)]

        for answers, one in zip(clients.map(ask, requests), wanted, strict=True):
            for found in answers:
                check(found, one)
    assert max(servable.sizes) > 1, "requests were batched, or the test shows nothing"


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
        check([json.loads(output.read_text())], wanted)
        assert f"{len(wanted[0])} detections" in printed and wanted[0][0]["category"] in printed
        status, printed = run("--image=missing.jpg", f"--server={address}", "--rest")
    assert status == 1 and "Traceback" not in printed
    assert "missing.jpg can't be read" in printed.splitlines()[-1]


def test_warm_up_is_replayed_before_the_first_answer(servable):
    assert servable.replayed == 2


def test_model_service_and_rest_status(servable):
    with grpc_server(servable) as address, grpc.insecure_channel(address) as channel:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "retinanet"
        status = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request).model_version_status[0]
        assert (status.version, status.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    with rest_server(servable) as address:
        connection = http.client.HTTPConnection(address)
        connection.request("GET", "/v1/models/retinanet")
        assert json.loads(connection.getresponse().read())["model_version_status"][0]["state"] == "AVAILABLE"


def test_other_signatures_and_output_filter(detector, servable):
    with grpc_server(servable) as address, grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "retinanet", "image_tensor"
        request.inputs["input_tensor"].CopyFrom(tf.make_tensor_proto(picture(0)[None]))
        request.output_filter.append("detection_scores")
        answer = stub.Predict(request).outputs
        assert list(answer) == ["detection_scores"]
        wanted = detector([picture(0)])["scores"].numpy()
        np.testing.assert_allclose(tf.make_ndarray(answer["detection_scores"]), wanted, atol=1e-5)
        # Old clients read the fields of the protocol buffer: floats, as the TF Object Detection API gives them.
        request.output_filter[:] = list(OUTPUTS)
        assert stub.Predict(request).outputs["num_detections"].dtype == tf.float32.as_datatype_enum
        request.inputs["wrong"].CopyFrom(request.inputs["input_tensor"])
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_rest_takes_named_instances(servable, detector):
    """Both spellings of TensorFlow Serving's REST interface: {"b64": …} and {"input_tensor": {"b64": …}}."""
    import base64

    content = base64.b64encode(encode(picture(1))).decode()
    answers = []
    with rest_server(servable) as address:
        for instance in ({"b64": content}, {"input_tensor": {"b64": content}}):
            connection = http.client.HTTPConnection(address)
            connection.request("POST", "/v1/models/retinanet:predict", json.dumps({"instances": [instance]}))
            answers.append(json.loads(connection.getresponse().read())["predictions"][0])
    assert answers[0] == answers[1] and answers[0]["num_detections"] > 0


def resident_megabytes():
    """What the process holds now; its peak would hide growth behind whatever ran before."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def mutations(seeds, count):
    """Real files with bits flipped, bytes overwritten, parts cut out or doubled; and noise behind a true beginning."""
    rng = np.random.default_rng(7)
    for _ in range(count):
        data = bytearray(seeds[rng.integers(len(seeds))])
        for _ in range(rng.integers(1, 9)):
            kind, place = rng.integers(5), int(rng.integers(len(data)))
            if kind == 0:
                data[place] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                data[place : place + 4] = rng.bytes(4)
            elif kind == 2:
                del data[place : place + int(rng.integers(1, 200))]
            elif kind == 3:
                data[place:place] = data[place : place + int(rng.integers(1, 200))]
            else:  # headers decide most: the first bytes are hit as often as all others
                data[int(rng.integers(min(40, len(data))))] = int(rng.integers(256))
            if not data:
                data = bytearray(b"\xff")
        yield bytes(data)


def test_ten_thousand_mutated_images_without_a_crash(servable):
    """JPEG, PNG and BMP bytes, mutated: an answer or an InvalidArgument, and memory stays where it was.

    The network is small here; what is under attack, headers and decoders, is the served graph's own.
    """
    photo = np.asarray(Image.open(SAMPLES / "photo.jpg").resize((48, 32)))
    seeds = [encode(photo, "JPEG", quality=q, progressive=q == 60) for q in (60, 90)]
    seeds += [encode(photo), encode(photo[..., :1].repeat(3, -1), "PNG", optimize=True), encode(photo, "BMP")]
    signature = servable.signatures["serving_default"]
    answered = refused = 0
    for number, data in enumerate(mutations(seeds, 10_000)):
        try:
            signature(input_tensor=tf.constant([data]))
            answered += 1
        except tf.errors.InvalidArgumentError as error:
            assert re.search(r"images\[0\]", error.message), error.message
            refused += 1
        if number == 2_000:
            before = resident_megabytes()
    assert answered > 500 and refused > 500
    grown = resident_megabytes() - before
    assert grown < 100, f"{grown:.0f} MB more than after the first 2,000"


def test_bomb_is_refused_from_its_header(servable):
    """20000×20000 pixels would be 1.2 GB decoded."""
    bomb = (SAMPLES / "bomb.png").read_bytes()
    before = resident_megabytes()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"images\[1\] has more than 50000000 pixels"):
        servable.signatures["serving_default"](input_tensor=tf.constant([encode(picture(0)), bomb]))
    assert resident_megabytes() - before < 50


def test_serving_folder_is_what_the_server_reads():
    """models.config parses as the server's own message; the compose file names files that are there."""
    config = text_format.Parse((SERVING / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.model_platform) == ("retinanet", "tensorflow")
    compose = (SERVING / "docker-compose.yml").read_text()
    mounted = re.findall(r"/config/([\w.]+)", compose)
    assert mounted and all((SERVING / name).is_file() for name in mounted)
    assert f":{model.base_path}:ro" in compose
