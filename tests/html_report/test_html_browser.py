"""The report in headless Chromium: it draws, sorts, filters, selects, and asks nobody.

Skipped where chromium or its driver is missing (Debian: chromium, chromium-driver).
"""

import time

import pytest
from html_pages import CONTRAST, check_drawn, count, find, names, type_into
from report_files import CHECKPOINTS, HOSTILE, stack

from tpack.html_report import html_report


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, make in CHECKPOINTS.items():
        (folder / f"{name}.html").write_text(html_report(make(folder / f"{name}.safetensors")))
    return folder


def column(browser, number):
    return browser.execute_script(
        "return [...document.querySelectorAll('#tensors tbody tr:not([hidden])')]"
        f".map((row) => row.cells[{number}].textContent)"
    )


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("mode", ["light", "dark", "phone"])
def test_every_page_draws_without_a_complaint(opened, name, mode):
    browser = opened(name, dark=mode == "dark", mobile=mode == "phone",
                     width=390 if mode == "phone" else 1240)  # fmt: skip
    charts = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].map((c) => [c.id, c.childElementCount])"
    )
    missing = {"kept_only": {"zeros", "error", "scales", "worst"}}
    missing |= {lossless: {"error", "worst"} for lossless in ("exact", "partly_kept", "trained")}
    wanted = {"zeros", "error", "scales", "bytes", "worst"} - missing.get(name, set())
    assert {chart for chart, _ in charts} == wanted
    assert all(children for _, children in charts)
    check_drawn(browser)


def test_maps_state_the_range_of_their_colours(opened):
    browser = opened("exact")
    assert find(browser, "#zeros .legend").text.split("\n")[:2] == ["20%", "45%"]
    tints = browser.execute_script(
        "return [...document.querySelectorAll('#zeros rect')]"
        ".map((cell) => cell.style.getPropertyValue('--tint'))"
    )
    assert len(set(tints)) == 1  # equal shares have one colour
    assert float(tints[0]) == pytest.approx(0.1 + 0.9 * (21 / 64 - 0.2) / 0.25)
    browser = opened("stack")
    low, high = find(browser, "#error .legend").text.split("\n")[:2]
    worst = float(find(browser, "#worst .amount").text)
    assert (low, worst <= float(high) < worst + 0.1) == ("0", True)
    assert "unknown" in opened("partly_trained").execute_script(
        "return document.querySelector('#error .values').textContent"
    )


def test_a_map_explains_the_blank_cells_of_weights_that_were_kept(opened):
    browser = opened("partly_kept")
    assert find(browser, "#zeros .legend").text.split("\n")[-1] == "blank: not packed"
    assert count(browser, "#zeros rect") == 3
    assert "blank" not in find(opened("stack"), "#zeros .legend").text


def test_the_only_scale_of_a_weight_is_a_dot(opened):
    browser = opened("exact")
    assert count(browser, "#scales .alone circle") == 3
    assert count(browser, "#scales polyline, #scales polygon") == 0
    browser = opened("stack")  # a scale for each row
    assert count(browser, "#scales .alone") == 0
    assert count(browser, "#scales polyline") == 7


def test_charts_show_every_tensor(opened):
    browser = opened("stack")
    assert count(browser, "#zeros svg > g:first-of-type rect") == 28
    assert count(browser, "#error svg > g:first-of-type rect") == 28
    assert count(browser, "#scales .multiples svg") == 7
    assert count(browser, "#worst button") == 10
    assert count(browser, "#bytes .packed rect") == 7
    assert count(browser, "#bytes .scales rect") == 7
    assert count(browser, "#bytes .kept rect") == 3


def test_the_table_sorts_both_ways_with_mouse_and_keyboard(opened):
    browser = opened("stack")
    head = find(browser, "button[data-key=zeros]")
    head.click()
    found = [float(cell.rstrip("%")) for cell in column(browser, 5) if cell]
    assert found == sorted(found, reverse=True)
    assert column(browser, 5)[-1] == ""  # kept tensors come last
    head.send_keys("\ue007")  # Enter
    found = [float(cell.rstrip("%")) for cell in column(browser, 5) if cell]
    assert found == sorted(found)
    assert column(browser, 5)[-1] == ""
    assert count(browser, "[aria-sort]") == 1
    find(browser, "button[data-key=order]").click()
    assert names(browser)[1].startswith("model.layers.0.")
    find(browser, "button[data-key=elements]").click()
    assert column(browser, 1)[0] == "32×32"
    find(browser, "button[data-key=stored]").click()
    assert column(browser, 2) == sorted(column(browser, 2))


def test_the_table_filters_by_words_globs_and_kind(opened):
    browser = opened("stack")
    type_into(browser, "#filter input", "Q_PROJ")
    assert names(browser) == [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(4)]
    assert find(browser, "#count").text == "4 of 37 tensors"
    type_into(browser, "#filter input", "layers.2*mlp up")
    assert names(browser) == ["model.layers.2.mlp.up_proj.weight"]
    type_into(browser, "#filter input", "nothing has this name")
    assert names(browser) == []
    find(browser, "#filter input").clear()
    find(browser, "#filter input").send_keys(" ")
    for kind, wanted in (("kept", 9), ("quantized", 12), ("ternary", 28), ("", 37)):
        find(browser, f"#filter option[value='{kind}']").click()
        assert len(names(browser)) == wanted
    assert find(browser, "#count").text == "37 tensors"


def test_a_cell_selects_in_both_maps_and_the_table(opened):
    browser = opened("stack")
    browser.execute_script(
        "document.querySelectorAll('#zeros svg > g:first-of-type rect')[9]"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    (chosen,) = names(browser)
    assert count(browser, "#zeros rect.chosen") == count(browser, "#error rect.chosen") == 1
    assert chosen in find(browser, "#chosen").text
    assert chosen in find(browser, "#dock").text
    assert find(browser, "#said").get_attribute("textContent") == f"Chosen: {chosen}"
    find(browser, "#chosen").click()
    assert len(names(browser)) == 37
    assert count(browser, "rect.chosen") == 0
    assert not find(browser, "#chosen").is_displayed()
    assert not find(browser, "#dock").is_displayed()


def test_maps_work_from_the_keyboard(opened):
    browser = opened("stack")
    picture = find(browser, "#zeros svg")
    browser.execute_script("arguments[0].focus()", picture)
    picture.send_keys("\ue014", "\ue015")  # right, down
    assert count(browser, "#zeros rect.over") == count(browser, "#error rect.over") == 1
    assert "share of zeros" in find(browser, "#said").get_attribute("textContent")
    picture.send_keys("\ue007")
    (chosen,) = names(browser)
    assert chosen.startswith("model.layers.1.")
    picture.send_keys("\ue00c")  # Escape
    assert len(names(browser)) == 37


def test_a_row_of_the_map_selects_a_projection(opened):
    browser = opened("stack")
    browser.execute_script(
        "[...document.querySelectorAll('#error .names text')]"
        ".find((text) => text.textContent.startsWith('mlp.up_proj'))"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    assert names(browser) == [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    assert count(browser, "#zeros rect.chosen") == 4


def test_pointing_at_a_cell_shows_its_numbers(opened):
    browser = opened("stack")
    browser.execute_script(
        "document.querySelector('#zeros svg > g:first-of-type rect').dispatchEvent("
        "new PointerEvent('pointermove', {bubbles: true, clientX: 1230, clientY: 990}))"
    )
    tip = find(browser, "#tip")
    assert "model.layers.0." in tip.text
    assert "bits per weight" in tip.text
    box = browser.execute_script("return arguments[0].getBoundingClientRect().toJSON()", tip)
    assert box["right"] <= 1240
    assert box["bottom"] <= 1000
    assert count(browser, "#error rect.over") == 1


def test_the_worst_layers_select_and_the_source_is_linked(opened):
    browser = opened("stack")
    find(browser, "#worst button").click()
    assert len(names(browser)) == 1
    assert find(browser, "#worst button").get_attribute("aria-pressed") == "true"
    link = find(browser, ".tree a[href='#source-Mlp']")
    link.click()
    assert count(browser, "pre:target") == 1
    assert "class Mlp" in find(browser, "pre:target").text


def test_the_page_is_drawn_again_for_another_width(opened):
    browser = opened("stack")
    before = find(browser, "#bytes svg").get_attribute("width")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 500, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
    )
    end = time.monotonic() + 5
    while find(browser, "#bytes svg").get_attribute("width") == before:
        assert time.monotonic() < end
    assert int(find(browser, "#bytes svg").get_attribute("width")) < int(before)


def test_hostile_names_run_nothing(opened):
    browser = opened("hostile")
    assert count(browser, "img") == 0
    assert count(browser, "script") == 2
    assert (
        sum("onerror=alert(1)" in name for name in names(browser)) == HOSTILE.count("onerror") * 2
    )
    assert browser.title == "hostile.safetensors · tpack"


def test_the_policy_holds(browser, pages):
    browser.get((pages / "stack.html").as_uri())
    outcome = browser.execute_async_script("""
        const done = arguments[0];
        const blocked = [];
        addEventListener("securitypolicyviolation", (e) => blocked.push(e.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.broken = true";
        document.body.append(script);
        const image = new Image();
        image.src = "http://127.0.0.1:9/x.png";
        document.body.append(image);
        fetch("http://127.0.0.1:9/").catch(() => {});
        setTimeout(() => done([blocked, window.broken ?? null]), 300);
    """)
    browser.get_log("browser")
    browser.get_log("performance")
    assert set(outcome[0]) == {"script-src-elem", "img-src", "connect-src"}
    assert outcome[1] is None


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_the_contrast_of_wcag_aa(opened, dark):
    browser = opened("stack", dark=dark)
    found = browser.execute_script(CONTRAST)
    assert [pair for pair in found if pair[2] < 4.5] == []
    # what is written in the cells of maps, at the fullest colour
    browser.execute_script(
        "for (const r of document.querySelectorAll('.heat rect')) r.style.setProperty('--tint', 1)"
    )
    cells = (
        "[...document.querySelectorAll('.heat rect')].map((r) => "
        "['--ink', getComputedStyle(r).fill, ratio(of('--ink'), getComputedStyle(r).fill)])"
    )
    found = browser.execute_script(
        CONTRAST.replace("pairs.map(([a, b]) => [a, b, ratio(of(a), of(b))])", cells)
    )
    assert len(found) == 56
    assert [pair for pair in found if pair[2] < 4.5] == []


def test_three_thousand_tensors_stay_small_and_usable(opened, pages, tmp_path):
    page = html_report(stack(tmp_path / "large.safetensors", 333))
    (pages / "large.html").write_text(page)
    assert page.count('<th scope="row">') == 2998
    assert len(page) < 500 * 2998
    browser = opened("large")
    assert count(browser, "#zeros svg > g:first-of-type rect") == 333 * 7
    assert count(browser, "*") < 50_000
    type_into(browser, "#filter input", "layers.332. q_proj")
    assert names(browser) == ["model.layers.332.self_attn.q_proj.weight"]
