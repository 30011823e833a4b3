// Time-dependent multi-head self-attention (TMSA) in windows: equations 3 to 6 of the paper.
import { dot, linear } from "./tensor.js";

// x (height * width, channels) and the time token (1, T) -> the same shape as x.
// `layer(name)` gives a weight of this layer; `watch(map)` is told the attention, (windows, heads, N, N).
export function tmsa(x, time, height, width, [high, wide], heads, layer, watch) {
  const channels = x.length / height / width;
  const size = channels / heads; // of one head
  const count = high * wide; // N, places in one window
  const qkv = linear(x, layer("qkv.weight"), layer("qkv.bias")); // of the image's token: what is here
  const ofTime = linear(time, layer("qkv_temb.weight"), layer("qkv_temb.bias")); // of the time token: how noisy it is
  for (let at = 0; at < qkv.length; at++) qkv[at] += ofTime[at % (3 * channels)]; // equations 3, 4 and 5
  const bias = layer("relative_position_bias_table").data;
  const map = new Float32Array(((height * width) / count) * heads * count * count);
  const y = new Float32Array(x.length);
  const places = new Int32Array(count);
  let row = 0; // of the map
  for (let window = 0; window < (height * width) / count; window++) {
    for (let n = 0; n < count; n++) places[n] = placeInWindow(window, n, width, [high, wide]);
    for (let head = 0; head < heads; head++) {
      const offset = head * size;
      for (let i = 0; i < count; i++, row += count) {
        const query = places[i] * 3 * channels + offset;
        let largest = -Infinity;
        for (let j = 0; j < count; j++) {
          const key = places[j] * 3 * channels + channels + offset;
          const scaled = dot(qkv, query, qkv, key, size) / Math.sqrt(size);
          map[row + j] = scaled + bias[biasRow(i, j, [high, wide]) * heads + head];
          largest = Math.max(largest, map[row + j]);
        }
        let total = 0;
        for (let j = 0; j < count; j++) total += (map[row + j] = Math.exp(map[row + j] - largest));
        for (let j = 0; j < count; j++) {
          const share = (map[row + j] /= total); // equation 6: the shares of one row sum to 1
          const value = places[j] * 3 * channels + 2 * channels + offset;
          const to = places[i] * channels + offset;
          for (let n = 0; n < size; n++) y[to + n] += share * qkv[value + n];
        }
      }
    }
  }
  watch(map);
  return linear(y, layer("proj.weight"), layer("proj.bias"));
}

// Place on the map of the n-th place of a window.
export function placeInWindow(window, n, width, [high, wide]) {
  const across = width / wide;
  const row = Math.floor(window / across) * high + Math.floor(n / wide);
  return row * width + (window % across) * wide + (n % wide);
}

// Window of a place, and which place of that window it is: the inverse of placeInWindow.
export function windowOf(row, column, width, [high, wide]) {
  const window = Math.floor(row / high) * (width / wide) + Math.floor(column / wide);
  return { window, n: (row % high) * wide + (column % wide) };
}

// Row of the bias table for query i and key j of one window: it depends on how far and in which direction j lies.
export function biasRow(i, j, [high, wide]) {
  const down = Math.floor(i / wide) - Math.floor(j / wide) + high - 1;
  const right = (i % wide) - (j % wide) + wide - 1;
  return down * (2 * wide - 1) + right;
}
