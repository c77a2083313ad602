// One compartment, first-order absorption: the marginal likelihood of TMB (Kristensen et al. 2016, J Stat Softw 70(5)).
// first_order 0: the Laplace approximation at the mode of eta, with the exact Hessian; `sensitivity` and `sd` are what
// reference.R needs to put FOCE's Hessian in its place.
// first_order 1: f is replaced by f(0) + G eta and the residual sd by its value at eta = 0, which is linear and normal
// in eta, so that the Laplace approximation is exact and equals FO.
#include <TMB.hpp>

template <class Type>
struct Level {
  Type value, by_ka, by_cl, by_v;  // and its derivatives with respect to log KA, log CL and log V
};

template <class Type>
Level<Type> level(Type dose, Type since, Type ka, Type cl, Type v) {
  Level<Type> at;  // all 0 at time 0, and so before the lag is over
  Type time = CppAD::CondExpGt(since, Type(0), since, Type(0));
  Type k = cl / v, gap = ka - k, slow = exp(-k * time), fast = exp(-ka * time);
  Type scale = dose * ka / (v * gap);
  Type by_k = scale * ((slow - fast) / gap - time * slow);
  at.value = scale * (slow - fast);
  at.by_ka = -at.value * k / gap + scale * ka * time * fast;
  at.by_cl = by_k * k;
  at.by_v = -at.value - by_k * k;
  return at;
}

template <class Type>
Type objective_function<Type>::operator()() {
  DATA_VECTOR(time);
  DATA_VECTOR(dv);
  DATA_VECTOR(dose);  // of the row's subject
  DATA_IVECTOR(subject);
  DATA_INTEGER(first_order);
  DATA_INTEGER(combined);
  PARAMETER_VECTOR(log_typical);  // KA, CL, V
  PARAMETER(log_lag);
  PARAMETER_VECTOR(log_omega);
  PARAMETER_VECTOR(correlation);  // of Omega's unconstrained Cholesky factor; fixed at 0: diagonal
  PARAMETER(log_additive);
  PARAMETER(log_proportional);
  PARAMETER_MATRIX(eta);  // 3 x subjects

  using namespace density;
  UNSTRUCTURED_CORR_t<Type> correlated(correlation);
  vector<Type> omega = exp(log_omega), typical = exp(log_typical);
  Type result = 0, lag = exp(log_lag);
  matrix<Type> sensitivity(dv.size(), 3);
  vector<Type> sd(dv.size());
  for (int i = 0; i < eta.cols(); i++) {
    vector<Type> effect = eta.col(i);
    result += VECSCALE(correlated, omega)(effect);
  }
  for (int j = 0; j < dv.size(); j++) {
    vector<Type> effect = eta.col(subject(j));
    vector<Type> own = typical;
    if (!first_order) own = typical * exp(effect);
    Level<Type> at = level(dose(j), time(j) - lag, own(0), own(1), own(2));
    Type mean = at.value;
    if (first_order) mean += at.by_ka * effect(0) + at.by_cl * effect(1) + at.by_v * effect(2);
    sd(j) = exp(log_additive);
    if (combined) sd(j) += exp(log_proportional) * at.value;
    result -= dnorm(dv(j), mean, sd(j), true);
    sensitivity.row(j) << at.by_ka, at.by_cl, at.by_v;
  }
  matrix<Type> covariance = correlated.cov();
  for (int i = 0; i < 3; i++)
    for (int j = 0; j < 3; j++) covariance(i, j) *= omega(i) * omega(j);
  REPORT(covariance);
  REPORT(sensitivity);
  REPORT(sd);
  return result;
}
