// Arrays and the few layers of the network.
// A map is a Float32Array, row by row, channels last: (height * width, channels).
// A weight is {data: Float32Array, shape}; its first axis counts outputs, and convolutions are (out, 3, 3, in).

// Bytes of a base64 text.
export function decodeBase64(text) {
  const characters = atob(text.trim());
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

// IEEE half precision, little-endian -> Float32Array.
export function halfToFloat(bytes) {
  const halves = new Uint16Array(bytes.buffer);
  return Float32Array.from(halves, (half) => {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
}

// x (rows, in) -> x W^T + bias (rows, out). All the work of the network is done here: two rows by four outputs at once.
export function linear(x, weight, bias) {
  const outs = weight.shape[0];
  const ins = weight.data.length / outs;
  const rows = x.length / ins;
  const w = weight.data;
  const b = bias.data;
  const y = new Float32Array(rows * outs);
  let out = 0;
  for (; out + 4 <= outs; out += 4) {
    const w0 = out * ins;
    const w1 = w0 + ins;
    const w2 = w1 + ins;
    const w3 = w2 + ins;
    let row = 0;
    for (; row + 2 <= rows; row += 2) {
      const x0 = row * ins;
      const x1 = x0 + ins;
      let a0 = b[out];
      let a1 = b[out + 1];
      let a2 = b[out + 2];
      let a3 = b[out + 3];
      let c0 = a0;
      let c1 = a1;
      let c2 = a2;
      let c3 = a3;
      for (let i = 0; i < ins; i++) {
        const p = x[x0 + i];
        const q = x[x1 + i];
        let v = w[w0 + i];
        a0 += p * v;
        c0 += q * v;
        v = w[w1 + i];
        a1 += p * v;
        c1 += q * v;
        v = w[w2 + i];
        a2 += p * v;
        c2 += q * v;
        v = w[w3 + i];
        a3 += p * v;
        c3 += q * v;
      }
      const y0 = row * outs + out;
      const y1 = y0 + outs;
      y[y0] = a0;
      y[y0 + 1] = a1;
      y[y0 + 2] = a2;
      y[y0 + 3] = a3;
      y[y1] = c0;
      y[y1 + 1] = c1;
      y[y1 + 2] = c2;
      y[y1 + 3] = c3;
    }
    for (; row < rows; row++) {
      for (let o = out; o < out + 4; o++) y[row * outs + o] = b[o] + dot(x, row * ins, w, o * ins, ins);
    }
  }
  for (; out < outs; out++) {
    for (let row = 0; row < rows; row++) y[row * outs + out] = b[out] + dot(x, row * ins, w, out * ins, ins);
  }
  return y;
}

// Sum of x[i + n] y[j + n] for n below count.
export function dot(x, i, y, j, count) {
  let sum = 0;
  for (let n = 0; n < count; n++) sum += x[i + n] * y[j + n];
  return sum;
}

// 3x3 convolution with zero padding 1: gather the nine neighbours of each place, then one matrix product.
export function conv3x3(x, height, width, weight, bias, stride = 1) {
  const channels = weight.shape[3];
  const high = Math.ceil(height / stride);
  const wide = Math.ceil(width / stride);
  const patches = new Float32Array(high * wide * 9 * channels);
  let to = 0;
  for (let row = 0; row < high; row++) {
    for (let column = 0; column < wide; column++) {
      for (let k = 0; k < 9; k++, to += channels) {
        const r = row * stride + Math.floor(k / 3) - 1;
        const c = column * stride + (k % 3) - 1;
        if (r < 0 || r >= height || c < 0 || c >= width) continue;
        const from = (r * width + c) * channels;
        for (let i = 0; i < channels; i++) patches[to + i] = x[from + i];
      }
    }
  }
  return linear(patches, weight, bias);
}

// Each place four times: (height, width) -> (2 height, 2 width).
export function double(x, height, width, channels) {
  const y = new Float32Array(4 * x.length);
  for (let row = 0; row < 2 * height; row++) {
    for (let column = 0; column < 2 * width; column++) {
      const from = ((row >> 1) * width + (column >> 1)) * channels;
      y.set(x.subarray(from, from + channels), (row * 2 * width + column) * channels);
    }
  }
  return y;
}

// Squares of p x p pixels folded into channels, as torch's pixel_unshuffle: (height * width, C) -> (places, C p^2).
export function fold(x, height, width, p) {
  return moved(x, height, width, p, (y, pixel, folded) => (y[folded] = x[pixel]));
}

// The inverse; height and width are those of the image.
export function unfold(x, height, width, p) {
  return moved(x, height, width, p, (y, pixel, folded) => (y[pixel] = x[folded]));
}

function moved(x, height, width, p, move) {
  const channels = x.length / height / width; // of a pixel
  const y = new Float32Array(x.length);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const place = Math.floor(row / p) * (width / p) + Math.floor(column / p);
      const inside = (row % p) * p + (column % p);
      for (let c = 0; c < channels; c++) {
        move(y, (row * width + column) * channels + c, (place * channels + c) * p * p + inside);
      }
    }
  }
  return y;
}

// Channels of two maps side by side.
export function concatenate(x, y, places) {
  const [a, b] = [x.length / places, y.length / places];
  const both = new Float32Array(x.length + y.length);
  for (let n = 0; n < places; n++) {
    both.set(x.subarray(n * a, (n + 1) * a), n * (a + b));
    both.set(y.subarray(n * b, (n + 1) * b), n * (a + b) + a);
  }
  return both;
}

// Each token to mean 0 and variance 1 over its channels, then scaled and shifted.
export function layerNorm(x, weight, bias) {
  return normalise(x, weight, bias, 1, true);
}

// The same over all places and the channels of one group: at most 32 groups of at least 4 channels.
export function groupNorm(x, weight, bias) {
  const channels = weight.data.length;
  return normalise(x, weight, bias, gcd(channels, Math.min(32, channels >> 2)), false);
}

function normalise(x, weight, bias, groups, eachPlace) {
  const channels = weight.data.length;
  const size = channels / groups;
  const places = x.length / channels;
  const span = eachPlace ? 1 : places; // places that share a mean
  const y = new Float32Array(x.length);
  for (let place = 0; place < places; place += span) {
    for (let group = 0; group < groups; group++) {
      const start = place * channels + group * size;
      const end = start + span * channels;
      let mean = 0;
      for (let at = start; at < end; at += channels) for (let i = 0; i < size; i++) mean += x[at + i];
      mean /= span * size;
      let variance = 0;
      for (let at = start; at < end; at += channels) for (let i = 0; i < size; i++) variance += (x[at + i] - mean) ** 2;
      const scale = 1 / Math.sqrt(variance / (span * size) + 1e-6);
      for (let at = start; at < end; at += channels) {
        for (let i = 0; i < size; i++) {
          const channel = group * size + i;
          y[at + i] = (x[at + i] - mean) * scale * weight.data[channel] + bias.data[channel];
        }
      }
    }
  }
  return y;
}

function gcd(a, b) {
  return b ? gcd(b, a % b) : a;
}

export function add(x, y) {
  const sum = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) sum[i] = x[i] + y[i];
  return sum;
}

export function silu(x) {
  const y = new Float32Array(x.length);
  for (let i = 0; i < x.length; i++) y[i] = x[i] / (1 + Math.exp(-x[i]));
  return y;
}

// GELU in its tanh form: (1 + tanh(u)) / 2 is 1 / (1 + exp(-2 u)).
export function gelu(x) {
  const y = new Float32Array(x.length);
  const c = 2 * Math.sqrt(2 / Math.PI);
  for (let i = 0; i < x.length; i++) y[i] = x[i] / (1 + Math.exp(-c * (x[i] + 0.044715 * x[i] * x[i] * x[i])));
  return y;
}
