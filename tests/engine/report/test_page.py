"""The report of known stores: its text, and its behaviour in a real browser."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from engine.corpora import Corpus
from engine.errors import ImageError
from engine.masks.instances import Instances
from engine.masks.rle import encode_rles
from engine.objects.memory import MemoryObjects
from engine.report.page import build_report
from engine.store.pseudo_labels import PseudoLabelStore
from engine.store.runs import RunRecord
from engine.store.version_info import VersionInfo
from engine.types import ImageRecord, Outcome, Reason, Status

INFO = VersionInfo(
    round=0,
    configuration={"method": "promerge", "promerge": {"tau_b": 0.2}},
    weights_digest="0123",
    parent=None,
    code_version="1.0",
    device="cpu",
)
HOSTILE = '</figcaption><script>document.title="taken"</script><img src=x onerror="alert(1)">.jpg'


def labelled(name: str, seed: int, stability: float = np.nan, sha256: str = "0") -> Outcome:
    masks = np.zeros((2, 48, 64), bool)
    masks[0, 4:20, 4 + seed : 24 + seed] = True
    masks[1, 30:40, 40:60] = True
    instances = Instances(
        size=(48, 64),
        method="promerge",
        rles=encode_rles(masks),
        boxes_xyxy=np.array([[4 + seed, 4, 24 + seed, 20], [40, 30, 60, 40]], np.int32),
        areas=masks.sum(axis=(1, 2)),
        scores=np.array([0.9 - seed / 50, 0.4], np.float32),
        stabilities=np.array([stability, stability], np.float32),
    )
    return Outcome(
        record=ImageRecord(image_id=name, path=name),
        status=Status.LABELLED,
        height=48,
        width=64,
        sha256=sha256,
        instances=instances,
    )


def without(name: str, reason: Reason, status: Status) -> Outcome:
    return Outcome(
        record=ImageRecord(image_id=name, path=name), status=status, reason=reason, detail=f"<i>{name}</i>"
    )


@pytest.fixture
def jpeg(photograph: Callable[[int], np.ndarray], encode_image: Callable[..., bytes]) -> bytes:
    return encode_image(photograph(0), "JPEG")


@pytest.fixture
def store(jpeg: bytes) -> PseudoLabelStore:
    """Two evaluated rounds with a hostile name, images of every status and the record of a run."""
    sha256 = hashlib.sha256(jpeg).hexdigest()
    store = PseudoLabelStore(MemoryObjects())
    parent = None
    for number in range(2):
        info = replace(INFO, round=number, parent=parent)
        version = store.begin(info, "resume")
        stability = np.nan if number == 0 else 1.5
        rows = [labelled(f"image-{i:02d}.jpg", i, stability, sha256) for i in range(12)]
        version.commit(0, rows)
        version.commit(
            1,
            [
                labelled(HOSTILE, 3, stability, "of another file"),
                without("empty.jpg", Reason.EMPTY_FILE, Status.REJECTED),
                without("sky.jpg", Reason.NO_BACKGROUND, Status.NO_OBJECT),
            ],
        )
        version.finish()
        version.record_evaluation(
            "77aa01c93e5d",
            {
                "boxes": {"AP": 0.05 + number / 20},
                "masks": {"AP": 0.04, "AR@100": 0.12},
                "protocol": {"score": "score", "ground_truth": {"images": 15}},
                "score_to_iou": {"masks": {"rank_correlation": 0.06}},
            },
        )
        parent = version.name
    version.record_run(RunRecord(images=15, seconds=6.0, device="cpu", workers={"readers": 1}))
    return store


class Photographs:
    """A corpus with one unreadable image."""

    uri = "memory:"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, record: ImageRecord) -> bytes:
        if record.image_id == "image-03.jpg":
            raise ImageError(Reason.MISSING, "it is gone")
        return self._data


@pytest.fixture
def corpus(jpeg: bytes) -> Any:
    return Photographs(jpeg)


@pytest.fixture
def page(store: PseudoLabelStore, corpus: Corpus) -> str:
    return build_report(store, store.version(), corpus)


def text_of(page: str) -> str:
    """The page without tags."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def test_text_of_the_page(page: str) -> None:
    text = text_of(page)
    for expected in (
        "Images 15", "Labelled 13 86.7", "No object 1", "Rejected 1", "Masks 26 1.86 per image",
        "2.5 images/s", "empty_file", "no_background", "promerge.tau_b 0.2", "0.040 0.120 0.100",
        "0.040 0.120 0.050", "1.50", "1 readers",
    ):  # fmt: skip
        assert expected in text, expected
    assert " 1 of the photographs could not be read" in text
    assert " 1 of the photographs changed after labelling" in text
    assert page.count("data:image/jpeg") > 20


def test_notes_are_found_not_found_or_not_tested(page: str) -> None:
    text = text_of(page)
    assert "Scores that do not rank The rank correlation is 0.06 on 15 annotated images. What to try:" in text
    assert "not found One mask per image: 0 of 13 labelled images have exactly one mask." in text
    assert "not tested A small encoder: the version does not record its encoder." in text
    # 11 images have readable photographs that are unchanged.
    assert re.search(r"not found Masks that follow colours: the median ratio is [\d.]+ for 22 masks", text)


def test_metrics_of_any_evaluation_are_shown(jpeg: bytes) -> None:
    store = PseudoLabelStore(MemoryObjects())
    # Round 0 has no annotated object, and recall has an unusual number of detections.
    for number, precision in enumerate((None, 0.25)):
        version = store.begin(replace(INFO, round=number), "resume")
        version.commit(0, [labelled("a.jpg", 1)])
        version.finish()
        metrics = {"AP": precision, "AR@1": precision, "AR@20": precision}
        version.record_evaluation("77aa01c93e5d", {"boxes": metrics, "masks": metrics, "protocol": {}})
    text = text_of(build_report(store, store.version(0), None))
    assert "Mask AR@20" in text
    assert "– – –" in text
    assert "0.250 0.250 0.250" in text


def test_photographs_are_decoded_with_the_version_s_settings(encode_image: Callable[..., bytes]) -> None:
    tiny = encode_image(np.zeros((8, 8, 3), np.uint8), "PNG")
    store = PseudoLabelStore(MemoryObjects())
    version = store.begin(replace(INFO, configuration={"decoding": {"min_side": 4}}), "resume")
    version.commit(0, [labelled("a.png", 1, sha256=hashlib.sha256(tiny).hexdigest())])
    version.finish()
    assert "could not be read" not in build_report(store, version, cast(Any, Photographs(tiny)))


def test_rounds_are_drawn(page: str) -> None:
    for label in (
        "Average precision by round: mask AP: 0.040, 0.040; box AP: 0.050, 0.100",
        "Labels by round: masks: 26, 26; labelled images: 13, 13",
        "Mean stability by round: mean stability: 1.500",
    ):
        assert f'aria-label="{label}"' in page, label


def test_names_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert 'onerror="' not in page
    assert "<i>" not in page
    assert "&lt;script&gt;" in page


def test_the_page_is_self_contained(page: str) -> None:
    assert re.findall(r"(?:src|href)=\"(?!data:|#)", page) == []
    assert "url(" not in page
    assert "@import" not in page


def test_without_a_corpus_masks_are_drawn_on_plain_grey(store: PseudoLabelStore) -> None:
    page = build_report(store, store.version(0), None)
    assert "plain grey" in page
    assert "Masks that follow colours:</b> the photographs were not read" in page
    assert "Round 0" in page
    assert page.count("data:image/jpeg") > 20


def test_a_store_without_any_mask() -> None:
    store = PseudoLabelStore(MemoryObjects())
    version = store.begin(INFO, "resume")
    version.commit(0, [without("sky.jpg", Reason.NO_BACKGROUND, Status.NO_OBJECT)])
    page = build_report(store, version, None)
    for expected in ("No image has a mask", "Collapse", "What to try", "no masks", "not finished yet"):
        assert expected in page


def unnamed_roles(tree: list[dict[str, Any]]) -> list[str]:
    """Roles of interactive or informative nodes without an accessible name."""
    roles = {"link", "button", "DisclosureTriangle", "img", "image", "navigation", "region", "heading"}
    return [
        node["role"]["value"]
        for node in tree
        if not node.get("ignored")
        and node["role"]["value"] in roles
        and not node.get("name", {}).get("value", "").strip()
    ]


def test_a_browser_shows_the_page(browser: Any, page: str, page_uri: Callable[[str], str]) -> None:
    browser.get(page_uri(page))
    assert browser.title.startswith("maskmill: labels in memory:, round 1")
    browser.execute_script("document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; })")
    loaded = "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert browser.execute_script(loaded)
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    assert sum(node["role"]["value"] == "link" for node in tree) >= 8
    assert sum(node["role"]["value"] == "DisclosureTriangle" for node in tree) >= 5
    assert unnamed_roles(tree) == []
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def test_the_keyboard_reaches_everything(browser: Any, page: str, page_uri: Callable[[str], str]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.get(page_uri(page))
    reached = []
    for _ in range(10):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(browser.execute_script("return document.activeElement.textContent.trim()"))
    assert reached[:3] == ["Skip to the pictures", "Notes", "Pictures"]
    assert reached[8] == "Rules of the notes"
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return document.querySelector('details').open")


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_has_enough_contrast(
    browser: Any, page: str, page_uri: Callable[[str], str], width: int, scheme: str
) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page_uri(page))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) < 0.1) == (scheme == "dark")
    verdicts = (".verdict-not-found", ".verdict-not-tested")
    for selector in ("p", ".soft", "figcaption span", "summary", *verdicts, "nav a", "td", "caption"):
        colour = browser.execute_script(
            f"return getComputedStyle(document.querySelector({json.dumps(selector)})).color"
        )
        assert contrast(colour, ground) >= 4.5, selector


def luminance(colour: str) -> float:
    """Relative luminance of an rgb() colour (WCAG 2)."""
    channels = np.array([int(value) for value in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first: str, second: str) -> float:
    brighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)
