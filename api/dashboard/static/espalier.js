// Without this file every page still shows its numbers and takes its forms. With it pages stay
// current, charts can be read point by point, and text can be copied.

document.documentElement.classList.add("scripted");

// What cannot be taken back is asked for twice.
document.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

// Buttons that copy the text of the element they name, also those that come later.
document.documentElement.classList.toggle("copies", Boolean(navigator.clipboard));
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  event.preventDefault();
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
  const words = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = words), 1500);
});

const parts = [
  ["[data-job]", "./job.js", "followJob"],
  ["#newjob", "./form.js", "followForm"],
  ["[data-log]", "./logs.js", "followLog"],
  ["[data-compare]", "./compare.js", "drawComparison"],
];

for (const [selector, module, name] of parts) {
  const element = document.querySelector(selector);
  if (element) import(module).then((found) => found[name](element));
}
