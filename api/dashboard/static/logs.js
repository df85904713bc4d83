// A log that follows: asks for what was added, and stays at the end while the reader is there.

const PAUSE_MS = 1000;
const KEPT_LINES = 5000;

export function followLog(box) {
  const { more, filter } = box.dataset;
  let at = Number(box.dataset.log);
  if (box.dataset.final === "yes") return;
  const isAtEnd = () => box.scrollHeight - box.scrollTop - box.clientHeight < 24;
  box.scrollTop = box.scrollHeight;

  const add = (text) => {
    const stay = isAtEnd();
    const lines = `${box.textContent}${text}`.split("\n");
    box.textContent = lines.slice(-KEPT_LINES).join("\n");
    if (stay) box.scrollTop = box.scrollHeight;
  };
  const look = async () => {
    const query = new URLSearchParams({ after: at, ...(filter ? { q: filter } : {}) });
    const response = await fetch(`${more}&${query}`).catch(() => null);
    if (response?.ok) {
      const found = await response.json();
      at = found.length;
      if (found.text) add(found.text);
      if (found.final) return;
    }
    setTimeout(look, PAUSE_MS);
  };
  setTimeout(look, PAUSE_MS);
}
