// Figures as people read them.

const BYTES = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(value) {
  if (value === null) return "–";
  let at = 0;
  let left = Math.max(0, value);
  while (left >= 1000 && at < BYTES.length - 1) {
    left /= 1024;
    at += 1;
  }
  return `${at === 0 || left >= 100 ? Math.round(left) : left.toFixed(1)} ${BYTES[at]}`;
}

export function age(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

export const celsius = (value) => (value === null ? "–" : `${value.toFixed(1)} °C`);
export const milliseconds = (value) =>
  value === null || value === undefined ? "–" : value >= 1000 ? `${(value / 1000).toFixed(2)} s` : `${value.toFixed(1)} ms`;
export const rate = (value) => `${value >= 10 ? Math.round(value) : value.toFixed(1)}/s`;
export const share = (value) => (value === null ? "–" : `${Math.round(value * 100)} %`);
export const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });
