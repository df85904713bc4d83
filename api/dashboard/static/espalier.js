// Without this file every page still shows its numbers and takes its forms. With it pages stay
// current, charts can be read point by point, and text can be copied.

document.documentElement.classList.add("scripted");

const parts = [
  ["[data-job]", "./job.js", "followJob"],
  ["#newjob", "./form.js", "followForm"],
  ["[data-log]", "./logs.js", "followLog"],
  ["[data-compare]", "./compare.js", "drawComparison"],
  ["[data-copy]", "./copy.js", "offerCopies"],
];

for (const [selector, module, name] of parts) {
  const element = document.querySelector(selector);
  if (element) import(module).then((found) => found[name](element));
}
