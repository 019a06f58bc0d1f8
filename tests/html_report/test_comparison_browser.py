"""The page of two checkpoints in headless Chromium."""

import pytest
from html_pages import check_drawn, count, find, names, type_into
from report_files import PAIRS

import tpack
from tpack.html_report import render_comparison


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAIRS.items():
        pair = make(tmp_path_factory.mktemp(name))
        (folder / f"{name}.html").write_text(render_comparison(tpack.diff(*pair)))
    return folder


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "same"])
@pytest.mark.parametrize("mode", ["light", "dark", "phone"])
def test_every_page_draws_without_a_complaint(opened, name, mode):
    browser = opened(name, dark=mode == "dark", mobile=mode == "phone",
                     width=390 if mode == "phone" else 1240)  # fmt: skip
    charts = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].map((c) => c.childElementCount)"
    )
    assert all(charts)
    check_drawn(browser)


def test_a_chosen_tensor_shows_its_map(opened):
    browser = opened("trained_stack")
    assert find(browser, "#changed .legend").text.split("\n")[:2] == ["0.001%", "100%"]
    texts = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
    shares = browser.execute_script(texts, "#maps figure > p:first-of-type")
    found = [float(p.split(", ")[1].split("%")[0]) for p in shares]
    assert 1 <= len(found) <= 12
    assert found == sorted(found, reverse=True)
    browser.execute_script(
        "[...document.querySelectorAll('#changed .names text')]"
        ".find((text) => text.textContent.startsWith('self_attn.o_proj'))"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    shown = browser.execute_script(texts, "#maps figcaption")
    assert shown
    assert all(name.endswith("self_attn.o_proj.weight") for name in shown)
    assert set(shown) <= set(names(browser))


def test_the_table_filters_and_sorts(opened):
    browser = opened("trained_stack")
    find(browser, "#filter option[value='only']").click()
    assert names(browser) == ["adapter.weight"]
    find(browser, "#filter option[value='']").click()
    type_into(browser, "#filter input", "layers.3 mlp")
    assert names(browser) == [f"model.layers.3.mlp.{n}_proj.weight" for n in ("down", "gate", "up")]
    find(browser, "button[data-key=share]").click()
    cells = browser.execute_script(
        "return [...document.querySelectorAll('#tensors tbody tr:not([hidden]) td:nth-child(6)')]"
        ".map((cell) => cell.textContent)"
    )
    found = [float(cell.rstrip("%")) for cell in cells]
    assert found == sorted(found, reverse=True)


def test_hostile_names_run_nothing(opened):
    browser = opened("hostile_pair")
    assert count(browser, "img") == 0
    assert count(browser, "script") == 2
    assert sum("onerror=alert(1)" in name for name in names(browser)) == 5
