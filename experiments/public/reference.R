# What nlme and TMB find on theophylline and warfarin (README.md). From the top of the checkout:
#
#     Rscript experiments/public/reference.R [outputs/data]
#
# writes reference.csv beside the event tables: one row for each data set, error model, Omega and method. `objective`
# is -2 log likelihood - n log(2 pi), NONMEM's and medcm's constant. Needs R with nlme and TMB (Debian: r-base-dev,
# r-cran-nlme, r-cran-tmb, r-cran-rcppeigen) and the event tables of README.md.
suppressPackageStartupMessages({
  library(nlme)
  library(TMB)
})

arguments <- commandArgs(trailingOnly = TRUE)
folder <- if (length(arguments)) arguments[1] else "outputs/data"
program <- sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE))

observations <- function(name) {
  rows <- read.csv(file.path(folder, paste0(name, ".csv")), na.strings = ".")
  doses <- rows[rows$evid == 1, ]
  seen <- rows[rows$evid == 0, ]
  seen$dose <- doses$amt[match(seen$id, doses$id)]
  seen$id <- factor(seen$id, levels = unique(seen$id))
  seen
}

# Level and its derivatives with respect to the logarithms, as deriv() makes them: nlme uses the gradient.
level <- deriv(
  ~ dose * exp(lka) / (exp(lv) * (exp(lka) - exp(lcl - lv))) *
    (exp(-exp(lcl - lv) * t) - exp(-exp(lka) * t)),
  c("lka", "lcl", "lv"), function(dose, t, lka, lcl, lv) NULL
)

# The lag enters through max(time - lag, 0); its derivative is that of the level in time, with the sign turned.
lagged <- function(dose, time, lka, lcl, lv, llag) {
  lag <- exp(llag)
  t <- pmax(time - lag, 0)
  f <- level(dose, t, lka, lcl, lv)
  ka <- exp(lka)
  k <- exp(lcl - lv)
  rate <- dose * ka / (exp(lv) * (ka - k)) * (ka * exp(-ka * t) - k * exp(-k * t))
  gradient <- cbind(attr(f, "gradient"), llag = -rate * lag * (time > lag))
  structure(as.vector(f), gradient = gradient)
}

line <- function(data, error, omega, method, loglik, n, typical, sds, additive, proportional = 0, lag = 0) {
  data.frame(
    data = data, error = error, omega = omega, method = method,
    objective = round(-2 * loglik - n * log(2 * pi), 4),
    KA = typical[1], CL = typical[2], V1 = typical[3], LAG = lag,
    omega_KA = sds[1], omega_CL = sds[2], omega_V1 = sds[3],
    additive = additive, proportional = proportional, row.names = NULL
  )
}

# The algorithm of Lindstrom and Bates (1990, Biometrics 46:673-687) for additive error. It alternates between two
# criteria and so ends near FOCE's minimum, not at it.
fit_nlme <- function(data, rows, full, with_lag, start) {
  control <- nlmeControl(
    maxIter = 500, pnlsTol = 1e-6, tolerance = 1e-8, msTol = 1e-9, pnlsMaxIter = 50, msMaxIter = 500
  )
  without <- dv ~ level(dose, time, lka, lcl, lv)
  formula <- if (with_lag) dv ~ lagged(dose, time, lka, lcl, lv, llag) else without
  fixed <- if (with_lag) lka + lcl + lv + llag ~ 1 else lka + lcl + lv ~ 1
  effects <- lka + lcl + lv ~ 1
  random <- list(id = if (full) pdLogChol(effects) else pdDiag(effects))
  fit <- nlme(formula, data = rows, fixed = fixed, random = random, start = start, method = "ML",
              control = control)
  sds <- as.numeric(VarCorr(fit)[1:3, "StdDev"])
  line(data, "additive", if (full) "full" else "diagonal", "nlme", as.numeric(logLik(fit)), nrow(rows),
       exp(fixef(fit)[1:3]), sds, fit$sigma, lag = if (with_lag) exp(fixef(fit)[["llag"]]) else 0)
}

# -log likelihood with the modes that TMB finds and, in place of its exact Hessian there, G' Sigma^-1 G + Omega^-1:
# FOCE. With `interaction`, also what the sd's own slope adds to the expected information (Almquist et al. 2015,
# J Pharmacokinet Pharmacodyn 42:191-209): FOCEI, as in NONMEM and nlmixr2.
conditional <- function(model, values, interaction) function(par) {
  model$fn(par)
  joint <- model$env$last.par
  at <- model$report(joint)
  slope <- if (interaction && values$combined) exp(par[["log_proportional"]]) else 0
  weighted <- at$sensitivity * sqrt(1 + 2 * slope^2) / at$sd
  inverse <- solve(at$covariance)
  log_det <- function(rows) determinant(crossprod(weighted[rows, , drop = FALSE]) + inverse)$modulus
  subjects <- split(seq_along(values$subject), values$subject)
  # The joint density has (2 pi)^(-3/2) per subject, which the Laplace approximation takes away again.
  model$env$f(joint) + sum(vapply(subjects, log_det, 0)) / 2 - length(subjects) * 3 / 2 * log(2 * pi)
}

fit_tmb <- function(data, rows, error, full, with_lag, start, method) {
  values <- list(
    time = rows$time, dv = rows$dv, dose = rows$dose, subject = as.integer(rows$id) - 1L,
    first_order = as.integer(method == "FO"), combined = as.integer(error == "combined")
  )
  initial <- list(
    log_typical = start[1:3], log_lag = if (with_lag) start[4] else -50, log_omega = log(c(0.8, 0.3, 0.2)),
    correlation = rep(0, 3), log_additive = log(0.5), log_proportional = log(0.1),
    eta = matrix(0, 3, nlevels(rows$id))
  )
  held <- list()
  if (!full) held$correlation <- factor(rep(NA, 3))
  if (!with_lag) held$log_lag <- factor(NA)
  if (error != "combined") held$log_proportional <- factor(NA)
  model <- MakeADFun(values, initial, map = held, random = "eta", DLL = "laplace", silent = TRUE)
  control <- list(eval.max = 2000, iter.max = 1000, rel.tol = 1e-12)
  # TMB's gradient is that of its own objective: FOCE's is taken by differences.
  fit <- suppressWarnings(if (method %in% c("FO", "Laplace")) {
    nlminb(model$par, model$fn, model$gr, control = control)
  } else {
    nlminb(model$par, conditional(model, values, method == "FOCEI"), control = control)
  })
  par <- split(unname(fit$par), names(fit$par))
  value <- function(name) if (is.null(par[[name]])) 0 else exp(par[[name]])
  line(data, error, if (full) "full" else "diagonal", paste("TMB", method), -fit$objective, nrow(rows),
       exp(par$log_typical), exp(par$log_omega), value("log_additive"), value("log_proportional"),
       value("log_lag"))
}

build <- tempfile("tmb")
dir.create(build)
file.copy(file.path(dirname(program), "laplace.cpp"), build)
here <- setwd(build)
compile("laplace.cpp")
dyn.load(dynlib("laplace"))
setwd(here)

# With a lag the objective has several minima, between different sampling times: the lowest from three starts is kept.
starts <- function(data) {
  if (data == "theophylline") return(list(c(lka = 0.45, lcl = 1, lv = 3.45)))
  lapply(c(0.7, 0.9, 1.2), function(lag) c(lka = 0, lcl = -2, lv = 2.05, llag = log(lag)))
}
cases <- rbind(
  data.frame(data = "theophylline", error = "additive", full = c(FALSE, TRUE)),
  data.frame(data = c("warfarin", "warfarin_quantified"), error = c("additive", "combined"), full = FALSE)
)
results <- list()
for (row in seq_len(nrow(cases))) {
  case <- cases[row, ]
  rows <- observations(case$data)
  with_lag <- case$data != "theophylline"
  # The exact Laplace approximation of warfarin depends on the start; with additive error FOCEI is FOCE.
  extra <- if (case$error == "combined") "FOCEI" else c("nlme", if (!with_lag) "Laplace")
  for (method in c("FO", "FOCE", extra)) {
    found <- lapply(starts(case$data), function(start) tryCatch(
      if (method == "nlme") fit_nlme(case$data, rows, case$full, with_lag, start)
      else fit_tmb(case$data, rows, case$error, case$full, with_lag, start, method),
      error = function(e) message(paste(case$data, method, "failed:", conditionMessage(e)))
    ))
    found <- do.call(rbind, found)
    if (!is.null(found)) results[[length(results) + 1]] <- found[which.min(found$objective), ]
  }
}
results <- do.call(rbind, results)
write.csv(results, file.path(folder, "reference.csv"), row.names = FALSE)
print(format(results, digits = 4), row.names = FALSE)
