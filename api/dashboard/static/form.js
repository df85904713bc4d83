// The new-job form: a slider that writes the target, within what the last estimate said is possible.

const STEPS = 1000;

const short = (count) => {
  for (const [scale, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "K"]]) {
    if (count >= scale) return `${+(count / scale).toPrecision(4)}${unit}`;
  }
  return `${Math.round(count)}`;
};

function written(size, facts, unit) {
  if (unit === "sparsity") return `${+((100 * (facts.params - size)) / facts.prunable).toFixed(1)}`;
  if (unit === "size_bytes") return `${+((size * facts.bytes) / 1e6).toFixed(1)}`;
  return short(size);
}

export function followForm(form) {
  const slider = form.querySelector("#target-slider");
  const box = form.querySelector("#slider");
  const target = form.querySelector("#f-target");
  const unit = form.querySelector("#f-target-unit");
  let facts = null;

  const read = () => {
    const found = form.querySelector("#estimated");
    if (!found) return;
    const { params, floor, prunable, bytes, result } = found.dataset;
    facts = { params: +params, floor: +floor, prunable: +prunable, bytes: +bytes };
    box.hidden = false;
    box.querySelector(".never").setAttribute("width", `${(STEPS * facts.floor) / facts.params}`);
    box.querySelector("#slider-floor").textContent = `smallest possible ${short(facts.floor)}`;
    box.querySelector("#slider-base").textContent = `base ${short(facts.params)}`;
    if (document.activeElement !== slider) slider.value = `${Math.round((STEPS * +result) / facts.params)}`;
    slider.setAttribute("aria-valuetext", `${short(+result)} parameters`);
  };

  slider.addEventListener("input", () => {
    if (!facts) return;
    const size = Math.max((facts.params * slider.value) / STEPS, facts.floor);
    slider.setAttribute("aria-valuetext", `${short(size)} parameters`);
    target.value = written(size, facts, unit.value);
  });
  unit.addEventListener("change", () => {
    if (!facts) return;
    target.value = written((facts.params * slider.value) / STEPS, facts, unit.value);
    form.dispatchEvent(new Event("input", { bubbles: true }));
  });
  followUpload(document.getElementById("upload"), form);
  new MutationObserver(read).observe(form.querySelector("#estimate"), { childList: true, subtree: true, attributes: true });
  read();
}

// Without leaving the page: the file is sent, and its id becomes a line of the text to train on.
function followUpload(upload, form) {
  const sent = form.querySelector("#sent");
  const data = form.querySelector("#f-data");
  upload.addEventListener("submit", async (event) => {
    event.preventDefault();
    sent.textContent = "Sending …";
    const answer = await fetch(upload.action, { method: "POST", body: new FormData(upload), headers: { Accept: "application/json" } }).catch(() => null);
    const said = await answer?.json().catch(() => null);
    if (!answer?.ok) {
      sent.textContent = said?.detail ?? "The file could not be sent.";
      return;
    }
    sent.textContent = `${said.name} is ${said.id}`;
    data.value = [data.value.trim(), said.id].filter(Boolean).join("\n");
    form.dispatchEvent(new Event("input", { bubbles: true }));
  });
}
