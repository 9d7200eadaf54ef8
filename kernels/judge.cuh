// What the measured gradients of an optimizer amount to; lucid_gpu/execution/outcome.py does the
// same on the host, to the bit.
#pragma once

struct Judged {
  const float* scale;       // by which the loss was multiplied; null for 1
  int* found;               // set to 1 if elements are not finite, or null
  const int* heeded;        // whether some were not before they were unscaled, or null
  Outcome* outcome;         // null where nothing is judged
  const long long* counts;  // of elements that are not finite, of each gradient
  long long* culprits;      // the same of the first step that is skipped
  long long tensors;
  double max_norm;  // 0 for no bound
  long long may_skip;
};

// Writes what the squares of all gradients, as they are, add up to, and how many elements are not
// finite: NaN and -1 if they were not measured. Run by one thread.
__device__ inline void judge(const Judged& judged, double total, long long count) {
  if (!judged.outcome) return;
  const double scale = judged.scale ? double(*judged.scale) : 1.0;
  // What PyTorch has found is a float, whose bits are 0 if it is.
  const bool is_bad = count > 0 || (judged.heeded && *judged.heeded != 0);
  Outcome& outcome = *judged.outcome;
  outcome.norm = sqrt(total) / scale;
  outcome.factor = 1.0 / scale;
  if (judged.max_norm > 0) {
    const double bound = judged.max_norm / (outcome.norm + 1e-6);
    outcome.factor = outcome.factor * (bound > 1.0 ? 1.0 : bound);  // NaN stays
  }
  outcome.single_factor = float(outcome.factor);
  outcome.nonfinite = count;
  outcome.scale = float(scale);
  outcome.skipped = judged.may_skip && is_bad;
  outcome.skips += outcome.skipped;
  outcome.judged += 1;
  if (outcome.skipped && !outcome.first_skip) {
    outcome.first_skip = outcome.judged;
    for (long long i = 0; i < judged.tensors; ++i) judged.culprits[i] = __ldcg(judged.counts + i);
  }
  if (judged.found && count > 0) *judged.found = 1;
}

struct Adjusted {
  float* scale;
  int* tracker;  // steps since the scale last changed
  int* found;    // whether elements were not finite since then; cleared
  float growth, backoff;
  int interval;
};

// Moves the scale of a loss, after the steps of all optimizers. Run by one thread.
__global__ void adjust(const __grid_constant__ Adjusted adjusted) {
  if (*adjusted.found) {
    *adjusted.scale = *adjusted.scale * adjusted.backoff;
    *adjusted.tracker = 0;
  } else if (++*adjusted.tracker == adjusted.interval) {
    const float grown = *adjusted.scale * adjusted.growth;
    if (grown - grown == 0) *adjusted.scale = grown;
    *adjusted.tracker = 0;
  }
  *adjusted.found = 0;
}
