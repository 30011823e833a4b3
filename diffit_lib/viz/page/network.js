// Image-space DiffiT: a U-shape of ResBlocks, each a convolution and a transformer block with TMSA.
import { tmsa } from "./attention.js";
import { add, concatenate, conv3x3, double, fold, gelu, groupNorm, layerNorm, linear, silu, unfold } from "./tensor.js";

export class Network {
  // config: {size: [height, width], patch, windows: one per level, heads, blocks (a level), width}
  // weights: a Map from the library's tensor names to {data, shape}
  constructor(config, weights) {
    this.config = config;
    this.weights = weights;
  }

  weight(name) {
    return this.weights.get(name);
  }

  // A layer of x, weight and bias, by the name of its weights.
  apply(layer, name, x) {
    return layer(x, this.weight(`${name}.weight`), this.weight(`${name}.bias`));
  }

  // Names of the ResBlocks in the order they run, with height, width and window of their maps.
  blocks() {
    const { size, patch, windows, blocks } = this.config;
    const last = windows.length - 1;
    const path = [...windows.keys()].map((level) => ["encoder", level]);
    for (let level = last - 1; level >= 0; level--) path.push(["decoder", level]);
    return path.flatMap(([side, level]) =>
      Array.from({ length: blocks }, (_, n) => ({
        name: `${side}.${level}.${n}`,
        side,
        level,
        height: (size[0] / patch) >> level,
        width: (size[1] / patch) >> level,
        window: windows[level],
      })),
    );
  }

  // Noise label (a number) and class -> the time token, (1, T).
  timeToken(noiseLabel, label) {
    const half = this.config.width / 2;
    const angle = (i) => Math.fround(noiseLabel) * Math.exp((-Math.log(10000) * i) / (half - 1));
    const wave = (_, i) => (i < half ? Math.sin(angle(i)) : Math.cos(angle(i - half)));
    const waves = Float32Array.from({ length: 2 * half }, wave);
    const hidden = silu(this.apply(linear, "time_token.mlp.0", waves));
    const token = silu(this.apply(linear, "time_token.mlp.2", hidden));
    const classes = this.weight("time_token.classes.weight");
    return add(token, classes.data.subarray(label * token.length, (label + 1) * token.length));
  }

  // Image (height * width, colours), noise label and class -> the raw output F, of the image's shape.
  // `watch(name, values)` is told the output of each part and, as NAME.attention, the attention of each block.
  forward(x, noiseLabel, label, watch = () => {}) {
    const { size, patch } = this.config;
    let [height, width] = size.map((side) => side / patch);
    const time = this.timeToken(noiseLabel, label);
    const tell = (name, values) => (watch(name, values), values);
    const skips = [];
    x = tell("tokenizer", this.conv("tokenizer", fold(x, ...size, patch), height, width));
    for (const block of this.blocks()) {
      const first = block.name.endsWith(".0");
      if (first && block.side === "encoder" && block.level > 0) {
        skips.push(x);
        x = tell(`down.${block.level - 1}`, this.conv(`down.${block.level - 1}`, x, height, width, 2));
      }
      if (first && block.side === "decoder") {
        x = double(x, height, width, x.length / height / width);
        x = tell(`up.${block.level}`, this.conv(`up.${block.level}.conv`, x, block.height, block.width));
        x = concatenate(x, skips.pop(), block.height * block.width);
      }
      ({ height, width } = block);
      x = tell(block.name, this.resBlock(block, x, time, watch));
    }
    x = tell("head", this.conv("head", silu(this.apply(groupNorm, "head_norm", x)), height, width));
    return unfold(x, ...size, patch);
  }

  conv(name, x, height, width, stride = 1) {
    return conv3x3(x, height, width, this.weight(`${name}.weight`), this.weight(`${name}.bias`), stride);
  }

  // Equations 9 and 10: x^ = Conv3x3(Swish(GN(x))), then DiffiT-Block(x^) + x.
  resBlock({ name, height, width, window }, x, time, watch) {
    const skip = this.weights.has(`${name}.skip.weight`) ? this.apply(linear, `${name}.skip`, x) : x;
    let y = this.conv(`${name}.conv`, silu(this.apply(groupNorm, `${name}.norm`, x)), height, width);
    const layer = (part) => this.weight(`${name}.block.attn.${part}`);
    const seen = this.apply(layerNorm, `${name}.block.norm1`, y);
    const watchMap = (map) => watch(`${name}.attention`, map);
    y = add(y, tmsa(seen, time, height, width, window, this.config.heads, layer, watchMap)); // equation 7
    const hidden = gelu(this.apply(linear, `${name}.block.mlp.fc1`, this.apply(layerNorm, `${name}.block.norm2`, y)));
    y = add(y, this.apply(linear, `${name}.block.mlp.fc2`, hidden)); // equation 8
    return add(y, skip);
  }
}
