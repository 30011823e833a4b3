// One sampling as the page runs it: in short slices between two frames, so that the knobs stay alive.
import { heun } from "./sampler.js";

const SLICE = 12; // milliseconds

export class Trajectory {
  // `show()` is called whenever there are new states to look at.
  constructor(model, show) {
    this.model = model;
    this.show = show;
    this.states = []; // one for each step so far; the old ones stay until the first new one is there
    this.steps = 0; // how many there will be
    this.controller = null; // of the sampling that runs; null: none runs
  }

  get running() {
    return this.controller !== null;
  }

  stop() {
    this.controller?.abort();
    this.controller = null;
  }

  // Draw with these settings from here on; what runs is cancelled. Whether it came to its end, not cancelled itself.
  async start(settings) {
    this.stop();
    const { signal } = (this.controller = new AbortController());
    const states = [];
    const noise = (k) => this.model.noise(settings.seed, k);
    await nextFrame(); // a knob on the move tells several values a frame: only the last one gets past here
    if (signal.aborted) return false;
    let pause = 0; // the first state is shown at once
    for (const state of heun(this.model, settings, noise)) {
      states.push(state);
      [this.states, this.steps] = [states, settings.steps];
      if (performance.now() < pause) continue;
      this.show();
      await nextFrame();
      if (signal.aborted) return false;
      pause = performance.now() + SLICE;
    }
    this.controller = null;
    this.show();
    return true;
  }
}

function nextFrame() {
  return new Promise((resolve) => requestAnimationFrame(resolve));
}
