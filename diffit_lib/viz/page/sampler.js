// The denoiser around the network, guidance, and Heun's sampler with EDM's churn (Karras et al. 2022).

// D(x; sigma) = c_skip x + c_out F(c_in x; time token). x is a Float64Array, label a class number.
// `tokenSigma` is the noise level that the time token is computed from: the true one, unless it is frozen.
export function denoise(model, x, sigma, label, tokenSigma = sigma, watch = () => {}) {
  const { sigmaData } = model;
  const total = Math.hypot(sigma, sigmaData);
  const skip = (sigmaData / total) ** 2;
  const out = (sigma * sigmaData) / total;
  const input = Float32Array.from(x, (value) => value / total); // c_in = 1 / total
  const raw = model.network.forward(input, Math.log(tokenSigma) / 4, label, watch);
  return x.map((value, i) => skip * value + out * raw[i]);
}

// Classifier-free guidance: D(no class) + scale (D(class) - D(no class)).
export function guided(model, x, sigma, label, scale, tokenSigma, watch) {
  const conditional = denoise(model, x, sigma, label, tokenSigma, watch);
  if (Math.abs(scale - 1) <= model.guidanceTolerance) return conditional;
  const unconditional = denoise(model, x, sigma, model.numClasses, tokenSigma);
  return unconditional.map((value, i) => value + scale * (conditional[i] - value));
}

// EDM's noise levels: `steps` of them from the largest to the smallest, then 0.
export function noiseLevels(model, steps, rho = 7) {
  const low = model.sigmaMin ** (1 / rho);
  const high = model.sigmaMax ** (1 / rho);
  const levels = Array.from({ length: steps }, (_, i) => (high + (i / (steps - 1)) * (low - high)) ** rho);
  return [...levels, 0];
}

// Heun's method. `noise(k)` is the k-th draw of this seed. Yields once a step, as soon as there is something to see:
// seen, the noisy image as the network sees it; sigma, its noise level; guess, the clean image the denoiser makes of it;
// maps, the attention inside, by block. The last guess is the finished image.
export function* heun(model, { label, steps, guidance, frozen }, noise) {
  const sigmas = noiseLevels(model, steps);
  const gamma = Math.min(model.churn / steps, Math.SQRT2 - 1);
  let x = Float64Array.from(noise(0), (value) => model.sigmaMax * value);
  for (let step = 1; step <= steps; step++) {
    const [before, after] = [sigmas[step - 1], sigmas[step]];
    const sigma = before * (1 + gamma); // churn: a little fresh noise before every step
    const spread = Math.sqrt(sigma ** 2 - before ** 2);
    const fresh = noise(step);
    const seen = x.map((value, i) => value + spread * fresh[i]);
    const maps = new Map();
    const watch = (name, values) => name.endsWith(".attention") && maps.set(name, values);
    const guess = guided(model, seen, sigma, label, guidance, frozen ?? sigma, watch);
    yield { step, sigma, seen, guess, maps };
    if (after === 0) return; // the step to 0 lands on the guess
    const slope = seen.map((value, i) => (value - guess[i]) / sigma);
    x = seen.map((value, i) => value + (after - sigma) * slope[i]);
    const again = guided(model, x, after, label, guidance, frozen ?? after);
    const mean = slope.map((value, i) => (value + (x[i] - again[i]) / after) / 2);
    x = seen.map((value, i) => value + (after - sigma) * mean[i]);
  }
}
