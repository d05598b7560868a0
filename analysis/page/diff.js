// Words that two texts do not share, for both from one alignment.

const WORD = /[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}_\s]/gu;
const MOST_CELLS = 4e6; // of the table of the longest common subsequence; larger middles count as changed whole

const words = (text) => text.match(WORD) || [];

// of each text [[same, piece], ...], where same says whether the other text has the piece, too
function compared(first, second) {
  const a = words(first), b = words(second);
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const shared = common(a.slice(start, a.length - end), b.slice(start, b.length - end));
  const changed = (of, side) => {
    const flags = new Uint8Array(of.length);
    flags.fill(1, start, of.length - end);
    for (const pair of shared) flags[start + pair[side]] = 0;
    return flags;
  };
  return [merged(a, changed(a, 0)), merged(b, changed(b, 1))];
}

function merged(of, changed) {
  const found = [];
  of.forEach((word, i) => {
    const same = !changed[i];
    if (found.length && found[found.length - 1][0] === same) found[found.length - 1][1] += word;
    else found.push([same, word]);
  });
  return found;
}

// places [i, j] of a longest common subsequence
function common(a, b) {
  const found = [], wide = b.length + 1;
  if (!a.length || !b.length || a.length * b.length > MOST_CELLS) return found;
  const best = new Uint16Array((a.length + 1) * wide);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      best[i * wide + j] = a[i] === b[j] ? best[(i + 1) * wide + j + 1] + 1 : Math.max(best[(i + 1) * wide + j], best[i * wide + j + 1]);
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) found.push([i++, j++]);
    else if (best[(i + 1) * wide + j] >= best[i * wide + j + 1]) i++;
    else j++;
  }
  return found;
}
